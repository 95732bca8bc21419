"""The application's arguments: what is wrong is named, with what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from deployments.config import REPOSITORY, AppArgs, ModelArgs, ModelSpec, StoreArgs, resolve_path
from deployments.serving.fleet import PREFIX

MODEL = {"id": "m", "task": "image-classification", "source": "torchvision:resnet18"}


def test_the_shipped_configuration_is_valid() -> None:
    config = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    args = AppArgs.model_validate(config["applications"][0]["args"])
    assert [m.id for m in args.models] == ["resnet18-cifar10", "segformer-b0-camvid", "smollm2-135m-instruct"]
    assert config["http_options"]["host"] == "127.0.0.1"


def test_the_example_of_models_as_applications_is_valid_and_the_same_server() -> None:
    shipped = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    config = yaml.safe_load((REPOSITORY / "deploy" / "applications.yaml").read_text())
    gateway, *models = config["applications"]
    assert config["controller_options"] == shipped["controller_options"]
    assert config["http_options"] == shipped["http_options"]
    own = AppArgs.model_validate(gateway["args"])
    assert gateway["name"] == own.store.application and models
    for application in models:
        args = ModelArgs.model_validate(application["args"])
        assert application["name"] == PREFIX + args.model.id and application["route_prefix"] is None
        assert application["import_path"] == "deployments.app:build_model"
        assert args.store == own.store


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"models": [MODEL | {"task": "image-classifier"}]}, ("models", 0, "task"), "image-classification"),
        ({"models": [MODEL | {"colour": "red"}]}, ("models", 0, "colour"), "not permitted"),
        ({"models": [MODEL | {"id": "a/b/c"}]}, ("models", 0, "id"), "pattern"),
        ({"models": [MODEL, MODEL]}, ("models",), "given twice: m"),
        ({"models": [MODEL | {"aliases": ["gpt", "m"]}]}, ("models",), "given twice: m"),
        ({"models": [MODEL | {"source": "x", "weights": "W"}]}, ("models", 0), "torchvision source only"),
        ({"gateway": {"deadline_s": 0}}, ("gateway", "deadline_s"), "greater than 0"),
        ({"store": {"redis": "x"}}, ("store", "redis"), "not permitted"),
    ],
)
def test_a_mistake_is_named(change: dict[str, Any], field: tuple[str | int, ...], says: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        AppArgs.model_validate({"models": [MODEL]} | change)
    (detail,) = refusal.value.errors()
    assert detail["loc"] == field
    assert says in detail["msg"]


def test_paths_do_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "resnet18-cifar10").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_path("models/resnet18-cifar10") == REPOSITORY / "models" / "resnet18-cifar10"
    assert resolve_path("/somewhere/else").as_posix() == "/somewhere/else"
    assert resolve_path("~/models") == Path.home() / "models"
    assert StoreArgs().folder == REPOSITORY / ".data"
    assert StoreArgs(data_dir=str(tmp_path)).folder == tmp_path


def test_a_specification_is_frozen() -> None:
    with pytest.raises(ValidationError):
        ModelSpec.model_validate(MODEL).id = "other"  # type: ignore[misc]
