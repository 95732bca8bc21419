"""`tenants models check`: what it says of good models, of bad ones, and of an answer that is not the library's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorFast
from typer.testing import CliRunner

from deployments.checking import pictures
from deployments.checking.command import app
from deployments.config import REPOSITORY

SHIPPED = {
    "id": "resnet18-cifar10",
    "task": "image-classification",
    "source": str(REPOSITORY / "models/resnet18-cifar10"),
    "calibration": str(REPOSITORY / "models/resnet18-cifar10/calibration.safetensors"),
}


def run(folder: Path, *models: dict[str, Any], words: tuple[str, ...] = ()) -> Any:
    file = folder / "serve_config.yaml"
    file.write_text(yaml.safe_dump({"applications": [{"args": {"models": list(models)}}]}))
    return CliRunner().invoke(app, ["check", str(file), *words])


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
                       patch_size=8, id2label={0: "tench, Tinca tinca", 1: "goldfish", 2: "goldfish"})  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorFast(size={"height": 32, "width": 32}).save_pretrained(folder)
    return {"id": "vit", "task": "image-classification", "source": str(folder)}


def test_a_good_model_is_described_and_its_levels_are_solved(tmp_path: Path) -> None:
    found = run(tmp_path, SHIPPED, words=("--json",))
    assert found.exit_code == 0, found.output
    (report,) = json.loads(found.stdout)
    assert report["good"] and report["problems"] == []
    assert report["facts"]["classes"].startswith("10: airplane; automobile")
    assert report["facts"]["parameters"].startswith("11,181,642, 44.8 MB in float32")
    assert "4,000 inputs" in report["facts"]["calibration"] and "floor" in report["facts"]


def test_level_one_is_compared_with_the_models_own_library(tmp_path: Path, vit: dict[str, Any]) -> None:
    found = run(tmp_path, vit)
    assert 'equals transformers.pipeline("image-classification") on 3 pictures' in found.output
    assert "3: tench, Tinca tinca; goldfish; goldfish" in found.output
    assert found.exit_code == 1 and "✗ levels below 1.0 need calibration" in found.output


def test_another_answer_than_the_librarys_is_a_problem(
    tmp_path: Path, vit: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "pictured", lambda spec, device: lambda image: torch.tensor([1.0, 0.0, 0.0]))
    found = run(tmp_path, vit)
    assert found.exit_code == 1 and "✗ level 1.0 is not what transformers.pipeline" in found.output


def test_every_model_is_told_and_a_bad_one_in_one_line(tmp_path: Path, vit: dict[str, Any]) -> None:
    found = run(tmp_path, {**vit, "id": "lost", "source": str(tmp_path / "nothing")}, SHIPPED)
    assert found.exit_code == 1
    problems = [line for line in found.output.splitlines() if "✗" in line]
    assert len(problems) == 1 and "lost" in problems[0] and "nothing" in problems[0]
    assert "✓ it can be served" in found.output
    assert "1 of 2 models have problems: lost." in found.output


def test_what_is_asked_for_must_be_there(tmp_path: Path) -> None:
    assert (
        "has no model 'other'; it has: resnet18-cifar10." in run(tmp_path, SHIPPED, words=("--model", "other")).output
    )
    assert "there is no file no.png" in run(tmp_path, SHIPPED, words=("--picture", "no.png")).output
