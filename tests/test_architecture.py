"""The package rules, read from the imports themselves: policies ← tenants ← deployments, and what each may load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.config import REPOSITORY

PACKAGES = ("policies", "tenants", "deployments")


def modules(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Top-level package of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def modules_imported(path: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports from, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("policies", {"tenants", "deployments", "ray", "redis", "fastapi", "transformers", "torchvision"}),
        ("tenants", {"deployments", "ray", "fastapi", "torch", "transformers", "torchvision"}),
        ("deployments/engines", {"tenants", "ray", "redis", "fastapi"}),
        ("deployments/http", {"torch", "transformers", "torchvision", "redis", "ray"}),
    ],
)
def test_a_package_imports_only_what_it_may(package: str, forbidden: set[str]) -> None:
    for path in modules(package):
        wrong = forbidden & set(imported(path))
        assert not wrong, f"{path.relative_to(REPOSITORY)} imports {', '.join(sorted(wrong))}"


ROOMS = [
    ("policies/attacks", "policies/field"),
    ("policies/field", "policies/calibration", "policies/head", "policies/library"),
    ("policies/field", "policies/calibration", "policies/provenance"),
    ("deployments/engines/images", "deployments/upkeep"),
    ("deployments/engines/text", "deployments/upkeep"),
]
"""In each row a room imports those before it and never those after it."""


@pytest.mark.parametrize("rooms", ROOMS, ids=lambda rooms: rooms[0].split("/")[-1])
def test_inside_a_package_there_is_one_way_through_its_rooms(rooms: tuple[str, ...]) -> None:
    for at, room in enumerate(rooms):
        later = tuple(other.replace("/", ".") for other in rooms[at + 1 :])
        for path in modules(room):
            wrong = [name for name in modules_imported(path) if name.startswith(later)] if later else []
            assert not wrong, f"{path.relative_to(REPOSITORY)} imports {wrong[0]}"


def test_what_loads_a_language_model_knows_nothing_of_the_engine() -> None:
    room = "deployments.engines.text.loading"
    for path in modules(room.replace(".", "/")):
        engine = [
            name for name in modules_imported(path) if name.startswith("deployments.engines.text") and room not in name
        ]
        assert not engine, f"{path.relative_to(REPOSITORY)} imports {engine[0]}"


def test_pictures_and_text_know_nothing_of_each_other() -> None:
    for room, other in (("images", "text"), ("text", "images")):
        for path in modules(f"deployments/engines/{room}"):
            assert not [name for name in modules_imported(path) if name.startswith(f"deployments.engines.{other}")], (
                path
            )


@pytest.mark.parametrize("name", ["tenants.cli", "tenants.cache", "tenants.admission", "deployments.gateway.service"])
def test_the_gateway_and_the_command_load_no_model_library(name: str) -> None:
    heavy = "{'torch', 'transformers', 'torchvision'}"
    code = f"import sys, {name}; loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_one_module_knows_each_redis_key() -> None:
    for path in [*modules("tenants"), *modules("deployments")]:
        if path.name != "keyspace.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                    assert not str(node.values[0].value).startswith(("tier:", "tenant:", "apikey:", "usage:")), path


def test_the_files_that_the_readme_shows_exist() -> None:
    tree = (REPOSITORY / "README.md").read_text().split("```text\n")[-1].split("```")[0]
    named = re.findall(r"[\w-]+\.(?:py|lua|yaml|md)\b", tree)
    assert len(named) > 20
    folders = [REPOSITORY / name for name in ("policies", "tenants", "deployments", "benchmarks")]
    present = {path.name for folder in folders for path in folder.rglob("*")}
    assert not [name for name in named if name not in present and not (REPOSITORY / name).exists()]


def test_no_path_of_this_machine_is_committed() -> None:
    here = str(REPOSITORY)
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        data = (REPOSITORY / name).read_bytes() if (REPOSITORY / name).exists() else b""
        assert f"{here}/".encode() not in data, name
