"""Where a classifier's weights may lie, and what is said of those that cannot be served."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from deployments.config import ModelSpec
from deployments.engines.errors import LoadError
from deployments.engines.images.classifier import ImageClassifier
from tests.deployments.vision_support import needs_shared, of_torchvision, saved_resnet, scenes

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "parallel.pth", "wrapped.pth"])
def test_a_local_torchvision_state_dict_loads(tmp_path: Path, name: str) -> None:
    engine = saved_resnet(tmp_path, name)
    pixels = engine.preprocess(scenes(1, 50, 30)[0])
    assert pixels.shape == (3, 64, 64)
    assert engine.classes == ("a", "b", "c")
    assert isinstance(engine.final, torch.nn.Linear)


def test_a_foreign_checkpoint_fails_by_naming_its_keys() -> None:
    path = needs_shared("models/resnet20-cifar10/resnet20-12fca82f.th")
    with pytest.raises(LoadError) as refused:
        ImageClassifier.load(of_torchvision("resnet18", path, CLASSES))
    for said in (
        "is not a resnet18",
        "missing: layer2.0.downsample.0.weight",
        "unexpected: ",
        "conv1.weight (16",
    ):
        assert said in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "torchvision:resnet19"}, "did you mean resnet1"),
        ({"weights": None}, "set weights"),
        ({"weights": "IMAGENET1K_V9"}, "it has IMAGENET1K_V1"),
        ({"weights": "IMAGENET1K_V1"}, "published weights bring their own preprocessing; leave out .* input_size"),
        ({"transforms": "ResNet18_Weights.IMAGENET1K_V1"}, "leave input_size out"),
        ({"input_size": None, "transforms": "ResNet18_Weights.V9"}, "no weights 'ResNet18_Weights.V9'"),
        ({"arguments": {"image_size": 64}}, "arguments do not fit resnet18: .*image_size"),
        ({"weights": "/nowhere/model.pth"}, "there is no file /nowhere/model.pth"),
        ({"labels": None}, "set labels"),
        ({"input_size": None}, "set transforms .* or input_size"),
        ({"source": "/nowhere", "weights": None}, "cannot load '/nowhere'"),
    ],
)
def test_a_wrong_source_is_refused_in_words(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), path)
    spec = ModelSpec.model_validate({**of_torchvision("resnet18", path, ["a", "b", "c"]).model_dump(), **changes})
    with pytest.raises(LoadError, match=said):
        ImageClassifier.load(spec)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(LoadError, match="cannot be read|is cut short or no safetensors file"):
            ImageClassifier.load(of_torchvision("resnet18", tmp_path / name, ["a", "b"]))
