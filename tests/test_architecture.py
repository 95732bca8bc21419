"""The rooms, read from the imports themselves: policies ← tenants ← deployments, and what each of them loads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from deployments.config import REPOSITORY

PACKAGES = ("policies", "tenants", "deployments")


def modules(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imported(node: ast.AST) -> Iterator[str]:
    """Dotted names of what a statement imports; of `from a import b` both `a` and `a.b`, which may be a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def everywhere(path: Path) -> set[str]:
    """All that a file imports, inside functions too."""
    return {name for node in ast.walk(ast.parse(path.read_text())) for name in imported(node)}


def at_load(path: Path) -> set[str]:
    """What a file imports when it is loaded itself."""

    def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in body:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from statements(node.orelse)
            elif isinstance(node, ast.If | ast.Try | ast.With):
                yield from statements(node.body)
            else:
                yield node

    return {name for node in statements(ast.parse(path.read_text()).body) for name in imported(node)}


def named(path: Path) -> str:
    """A file's dotted module name."""
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


LOADED = {named(path): at_load(path) for package in PACKAGES for path in modules(package)}


def reached(module: str) -> dict[str, str]:
    """Top-level packages that loading a module loads, ours looked through, each with the module of ours that does."""
    found: dict[str, str] = {}
    seen, waiting = {module}, [module]
    while waiting:
        current = waiting.pop()
        for name in LOADED[current]:
            if name in LOADED and name not in seen:
                seen.add(name)
                waiting.append(name)
            found.setdefault(name.split(".")[0], current)
    return found


MODEL_LIBRARIES = {"torch", "transformers", "torchvision"}
HTTP = {"fastapi", "starlette", "uvicorn"}


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("policies", {"tenants", "deployments", "ray", "redis", "transformers", "torchvision"} | HTTP),
        ("tenants", {"deployments", "ray"} | HTTP | MODEL_LIBRARIES),
        ("deployments/contracts", {"tenants", "ray", "redis"} | HTTP | MODEL_LIBRARIES),
        ("deployments/queues", {"tenants", "ray", "redis"} | HTTP | MODEL_LIBRARIES),
        ("deployments/prompts", {"tenants", "ray", "redis"} | HTTP | MODEL_LIBRARIES),
        ("deployments/engines", {"tenants", "ray", "redis"} | HTTP),
        ("deployments/upkeep", {"ray"} | HTTP),
        ("deployments/checking", {"ray"} | HTTP),
        ("deployments/launch", {"ray"} | HTTP | MODEL_LIBRARIES),
        ("deployments/gateway", {"ray"} | MODEL_LIBRARIES),
    ],
)
def test_a_room_loads_only_what_it_may_by_whatever_way(room: str, forbidden: set[str]) -> None:
    for path in modules(room):
        loads = reached(named(path))
        wrong = forbidden & set(loads)
        assert not wrong, f"{named(path)} loads {', '.join(f'{name} by {loads[name]}' for name in wrong)}"


def test_the_gateways_service_knows_no_http() -> None:
    for path in modules("deployments/gateway"):
        if "api" not in path.parts:
            assert not HTTP & set(reached(named(path))), path


def test_administration_over_http_is_a_face_of_the_tenants_room_alone() -> None:
    allowed = {"deployments.gateway.api.errors", "deployments.gateway.api.schemas"}
    for path in modules("deployments/gateway/api/admin"):
        ours = {name for name in everywhere(path) if name in LOADED and name.startswith("deployments.")}
        wrong = {name for name in ours - allowed if ".api.admin" not in name}
        assert wrong <= {"deployments.gateway.api", "deployments"}, f"{path.name} imports {wrong}"


@pytest.mark.parametrize("package", ["policies", "tenants", "deployments/engines"])
def test_what_stands_below_imports_nothing_above_not_even_inside_a_function(package: str) -> None:
    above = {"policies": ("tenants", "deployments"), "tenants": ("deployments",), "deployments/engines": ("tenants",)}
    for path in modules(package):
        assert not [name for name in everywhere(path) if name.split(".")[0] in above[package]], path


ROOMS = [
    (
        "tenants/records",
        "tenants/store",
        "tenants/batches",
        "tenants/changes",
        "tenants/reports",
        "tenants/live",
        "tenants/metering",
        "tenants/admin",
        "tenants/command",
    ),
    ("policies/attacks", "policies/field"),
    ("policies/field", "policies/calibration", "policies/head", "policies/library"),
    ("policies/field", "policies/calibration", "policies/provenance"),
    (
        "deployments/gateway_settings.py",
        "deployments/config.py",
        "deployments/contracts",
        "deployments/queues",
        "deployments/prompts",
        "deployments/engines",
        "deployments/environment.py",
        "deployments/upkeep",
        "deployments/gateway",
        "deployments/launch",
        "deployments/checking",
        "deployments/serving",
        "deployments/app.py",
    ),
    ("deployments/gateway/service.py", "deployments/gateway/batches", "deployments/gateway/api"),
]
"""In each row a room imports those before it and never those after it."""


@pytest.mark.parametrize("rooms", ROOMS, ids=lambda rooms: rooms[0].split("/")[-1])
def test_inside_a_package_there_is_one_way_through_its_rooms(rooms: tuple[str, ...]) -> None:
    for at, room in enumerate(rooms):
        later = [other.removesuffix(".py").replace("/", ".") for other in rooms[at + 1 :]]
        for path in [REPOSITORY / room] if room.endswith(".py") else modules(room):
            wrong = [name for name in everywhere(path) for other in later if f"{name}.".startswith(f"{other}.")]
            assert not wrong, f"{path.relative_to(REPOSITORY)} imports {wrong[0]}"


def test_no_module_loads_itself_by_way_of_others() -> None:
    graph = {module: {name for name in names if name in LOADED} - {module} for module, names in LOADED.items()}
    packages = {name for name in graph if (REPOSITORY / name.replace(".", "/") / "__init__.py").exists()}
    list(TopologicalSorter({m: names - packages for m, names in graph.items() if m not in packages}).static_order())


@pytest.mark.parametrize("package", ["tenants", "deployments"])
def test_every_room_has_its_place(package: str) -> None:
    (rooms,) = (
        rooms for rooms in ROOMS if rooms[-1] in ("tenants/command", "deployments/app.py") and package in rooms[0]
    )
    there = {
        f"{package}/{path.name}"
        for path in (REPOSITORY / package).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert there - {f"{package}/__init__.py"} == set(rooms)


def test_what_loads_a_language_model_knows_nothing_of_the_engine() -> None:
    room = "deployments.engines.text.loading"
    for path in modules(room.replace(".", "/")):
        engine = [name for name in everywhere(path) if name.startswith("deployments.engines.text") and room not in name]
        assert not engine, f"{path.relative_to(REPOSITORY)} imports {engine[0]}"


def test_pictures_and_text_know_nothing_of_each_other() -> None:
    for room, other in (("images", "text"), ("text", "images")):
        for path in modules(f"deployments/engines/{room}"):
            assert not [name for name in everywhere(path) if name.startswith(f"deployments.engines.{other}")], path


@pytest.mark.parametrize(
    "name", ["tenants.command.app", "tenants.live.cache", "tenants.metering.admission", "deployments.serving.ingress"]
)
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


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_what_a_page_points_to_is_there(page: str) -> None:
    path = REPOSITORY / page
    targets = [target for target in re.findall(r"\]\(([^)#]+)", path.read_text()) if "://" not in target]
    assert len(targets) > 15
    assert not [target for target in targets if not (path.parent / target).exists()]


def test_no_path_of_this_machine_is_committed() -> None:
    here = str(REPOSITORY)
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        data = (REPOSITORY / name).read_bytes() if (REPOSITORY / name).exists() else b""
        assert f"{here}/".encode() not in data, name
