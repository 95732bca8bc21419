"""The application's arguments: what is wrong is named, with what was expected."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from deployments.config import REPOSITORY, AppArgs, ModelSpec, resolve_path

MODEL = {"id": "m", "task": "image-classification", "source": "torchvision:resnet18"}


def test_the_shipped_configuration_is_valid() -> None:
    config = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    args = AppArgs.model_validate(config["applications"][0]["args"])
    assert [m.id for m in args.models] == ["resnet18-cifar10", "segformer-b0-camvid", "smollm2-135m-instruct"]
    assert config["http_options"]["host"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"models": [MODEL | {"task": "image-classifier"}]}, ("models", 0, "task"), "image-classification"),
        ({"models": [MODEL | {"colour": "red"}]}, ("models", 0, "colour"), "not permitted"),
        ({"models": [MODEL | {"id": "a/b"}]}, ("models", 0, "id"), "pattern"),
        ({"models": [MODEL, MODEL]}, ("models",), "given twice: m"),
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


def test_paths_fall_back_to_the_repository() -> None:
    assert resolve_path("models/resnet18-cifar10").is_dir()
    assert resolve_path("/somewhere/else").as_posix() == "/somewhere/else"


def test_a_specification_is_frozen() -> None:
    with pytest.raises(ValidationError):
        ModelSpec.model_validate(MODEL).id = "other"  # type: ignore[misc]
