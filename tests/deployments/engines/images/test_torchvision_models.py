"""torchvision's models: at level 1.0 the answer is that of torchvision's own model on torchvision's own pixels."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

from deployments.config import ModelSpec, Task
from deployments.engines.errors import LoadError
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.segmenter import ImageSegmenter
from tests.deployments.vision_support import GOLD, scenes

PICTURES = [*scenes(2, 300, 200), *scenes(1, 90, 240, seed=1)]


def published(weights: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor]) -> None:
    """Random weights where torch.hub keeps the published ones."""
    monkeypatch.setenv("TORCH_HOME", str(folder))
    (folder / "hub/checkpoints").mkdir(parents=True)
    torch.save(state, folder / "hub/checkpoints" / weights.url.rpartition("/")[2])


def answers(engine: ImageClassifier) -> Tensor:
    """Probabilities in the order of the classes, [B, K]."""
    return torch.tensor(
        [[dict(answer)[name] or 0.0 for name in engine.classes] for answer in engine.predict(PICTURES, [GOLD] * 3)]
    )


@torch.inference_mode()
def torchvisions(model: nn.Module, transform: Any) -> Tensor:
    return torch.cat([model.eval()(transform(picture)[None]).softmax(1) for picture in PICTURES])


@pytest.mark.parametrize("architecture", ["inception_v3", "googlenet", "densenet121"])
def test_published_weights_answer_as_torchvision_builds_them(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    more = {} if architecture == "densenet121" else {"aux_logits": True, "init_weights": False}
    state = torchvision.models.get_model(architecture, **more).state_dict()
    if not more:  # as the published file has them: names of torchvision 0.2
        state = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value
            for name, value in state.items()
            if not name.endswith("num_batches_tracked")
        }
    weights = torchvision.models.get_model_weights(architecture).IMAGENET1K_V1
    published(weights, tmp_path, monkeypatch, state)
    # Names with commas stand twice in ImageNet's list; numbers do not.
    spec = ModelSpec(
        id="m", task=Task.CLASSIFICATION, source=f"torchvision:{architecture}", weights="IMAGENET1K_V1",
        labels=tuple(map(str, range(1000))),
    )  # fmt: skip
    engine = ImageClassifier.load(spec)
    model = torchvision.models.get_model(architecture, weights=weights)
    assert getattr(model, "transform_input", True) is True
    assert torch.allclose(answers(engine), torchvisions(model, weights.transforms()), atol=1e-6)

    # The same file named as a state dict of one's own, which cannot tell what was done to its input.
    file = tmp_path / "hub/checkpoints" / weights.url.rpartition("/")[2]
    own = spec.model_copy(update={"weights": str(file), "transforms": str(weights)})
    if more:
        with pytest.raises(LoadError, match="set arguments to {transform_input: true}"):
            ImageClassifier.load(own)
        own = own.model_copy(update={"arguments": {"transform_input": True}})
    assert torch.equal(answers(ImageClassifier.load(own)), answers(engine))


@pytest.mark.parametrize("architecture", ["vit_b_32", "mnasnet0_5", "mobilenet_v3_small"])
def test_a_published_file_on_disk_is_read_as_torchvision_reads_it(architecture: str, tmp_path: Path) -> None:
    """Some models rename what their older files hold, by versions that a copied dictionary loses."""
    torch.manual_seed(0)
    model = seen(torchvision.models.get_model(architecture, num_classes=4))
    state = model.state_dict()
    for part in state._metadata.values():  # type: ignore[attr-defined]
        part.pop("version") if architecture.startswith("vit") else None
    old = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    for name in list(state):
        new = name
        for ours, theirs in old.items():
            new = new.replace(ours, theirs)
        state[new] = state.pop(name)
    engine = saved(tmp_path, architecture, state, "ResNet18_Weights.IMAGENET1K_V1")
    transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    assert torch.allclose(answers(engine), torchvisions(model, transform), atol=1e-6)


def seen(model: nn.Module) -> nn.Module:
    """A model whose last layer is not zero, as a vit's is at first."""
    for value in model.parameters():
        if not value.any():
            torch.nn.init.normal_(value, std=0.1)
    return model


def saved(folder: Path, architecture: str, held: Any, transforms: Any = None, **more: Any) -> ImageClassifier:
    torch.save(held, folder / "weights.pth")
    spec = ModelSpec(
        id="m", task=Task.CLASSIFICATION, source=f"torchvision:{architecture}", weights=str(folder / "weights.pth"),
        labels=("a", "b", "c", "d"), transforms=transforms, **more,
    )  # fmt: skip
    return ImageClassifier.load(spec)


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.mobilenet_v3_small(num_classes=4)


@pytest.mark.parametrize(
    "name", ["ResNet50_Weights.IMAGENET1K_V2", "EfficientNet_B1_Weights.IMAGENET1K_V2", "Swin_T_Weights.IMAGENET1K_V1"]
)
def test_a_fine_tuned_recipe_is_named_by_its_weights(small: nn.Module, tmp_path: Path, name: str) -> None:
    engine = saved(tmp_path, "mobilenet_v3_small", small.state_dict(), name)
    transform = torchvision.models.get_weight(name).transforms()
    assert torch.allclose(answers(engine), torchvisions(small, transform), atol=1e-6)


def test_a_recipe_of_ones_own_is_told_by_its_settings(small: nn.Module, tmp_path: Path) -> None:
    given = {"crop_size": 32, "resize_size": 40, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    engine = saved(tmp_path, "mobilenet_v3_small", small.state_dict(), {**given, "interpolation": "bicubic"})
    compose = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(40, torchvision.transforms.InterpolationMode.BICUBIC),
            torchvision.transforms.CenterCrop(32),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize(given["mean"], given["std"]),
        ]
    )
    assert torch.allclose(answers(engine), torchvisions(small, compose), atol=1e-6)
    for wrong, said in (
        ({"resize_size": 40}, "required keyword-only argument: 'crop_size'"),
        ({**given, "colour": 1}, "unexpected keyword argument 'colour'"),
        ({**given, "interpolation": "cubic"}, "'cubic' is not a valid InterpolationMode"),
        ({**given, "mean": [0.5, 0.5]}, "transforms does not fit torchvision's ImageClassification"),
    ):
        with pytest.raises(LoadError, match=said):
            saved(tmp_path, "mobilenet_v3_small", small.state_dict(), wrong)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_checkpoint_of_the_reference_training_says_its_own_preprocessing(
    small: nn.Module, tmp_path: Path, interpolation: str
) -> None:
    args = {"val_resize_size": 40, "val_crop_size": 32, "interpolation": interpolation, "backend": "PIL"}
    held = {"model": small.state_dict(), "epoch": 3, "args": Namespace(**args, model="mobilenet_v3_small")}
    engine = saved(tmp_path, "mobilenet_v3_small", held)
    mode = torchvision.transforms.InterpolationMode(interpolation)
    transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms(
        crop_size=32, resize_size=40, interpolation=mode
    )
    assert torch.allclose(answers(engine), torchvisions(small, transform), atol=1e-6)
    held["args"] = Namespace(**args | {"backend": "tensor"})
    with pytest.raises(LoadError, match="set transforms"):
        saved(tmp_path, "mobilenet_v3_small", held)


def test_a_vit_of_another_size_is_built_by_its_arguments(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = seen(torchvision.models.vit_b_32(num_classes=4, image_size=64))
    with pytest.raises(LoadError, match=r"of another shape: encoder.pos_embedding \(1, 5, 768\) instead of"):
        saved(tmp_path, "vit_b_32", model.state_dict(), input_size=64)
    engine = saved(tmp_path, "vit_b_32", model.state_dict(), input_size=64, arguments={"image_size": 64})
    assert engine.preprocess(PICTURES[0]).shape == (3, 64, 64)


def test_two_preprocessings_or_builds_never_share_a_calibration(small: nn.Module, tmp_path: Path) -> None:
    """The repr of torchvision's presets leaves antialiasing out, and weights do not tell what a model is built with."""
    names = ["ResNet50_Weights.IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V2", "Swin_T_Weights.IMAGENET1K_V1"]
    engines = [saved(tmp_path, "mobilenet_v3_small", small.state_dict(), name) for name in names]
    engines.append(saved(tmp_path, "mobilenet_v3_small", small.state_dict(), input_size=64))
    engines.append(saved(tmp_path, "mobilenet_v3_small", small.state_dict(), input_size=96))
    torch.manual_seed(0)
    inception = torchvision.models.googlenet(num_classes=4, init_weights=False, aux_logits=False).state_dict()
    for value in (True, False):
        engines.append(saved(tmp_path, "googlenet", inception, names[0], arguments={"transform_input": value}))
    assert len({engine.fingerprint for engine in engines}) == len(engines)
    again = saved(tmp_path, "mobilenet_v3_small", small.state_dict(), names[0])
    assert again.fingerprint == engines[0].fingerprint


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("architecture", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_a_segmenter_masks_as_torchvisions_own_model(architecture: str, auxiliary: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    more = {} if architecture.startswith("lraspp") else {"aux_loss": auxiliary}
    model = torchvision.models.get_model(architecture, weights_backbone=None, num_classes=5, **more).eval()
    torch.save({"model": model.state_dict(), "args": Namespace(aux_loss=auxiliary)}, tmp_path / "weights.pth")
    transforms = "LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1"
    spec = ModelSpec(
        id="m", task=Task.SEGMENTATION, source=f"torchvision:{architecture}", weights=str(tmp_path / "weights.pth"),
        labels=("sky", "sea", "sand", "tree", "boat"), transforms=transforms,
    )  # fmt: skip
    engine = ImageSegmenter.load(spec)
    pixels = torchvision.models.get_weight(transforms).transforms()(PICTURES[0])
    with torch.inference_mode():
        wanted = model(pixels[None])["out"][0]
    (item,) = engine.forward([engine.preprocess(PICTURES[0])], [GOLD])
    assert torch.allclose(item.logits, wanted, atol=1e-4 * float(wanted.abs().max()))
    labels, _ = engine.read(item.logits, (200, 300))
    full = F.interpolate(wanted[None], (200, 300), mode="bilinear", align_corners=False)[0].argmax(0)
    assert float((labels == full).float().mean()) > 0.9999


def test_a_published_segmenter_loads_by_its_enum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weights = torchvision.models.get_model_weights("lraspp_mobilenet_v3_large").COCO_WITH_VOC_LABELS_V1
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=21)
    published(weights, tmp_path, monkeypatch, model.state_dict())
    source = "torchvision:lraspp_mobilenet_v3_large"
    engine = ImageSegmenter.load(
        ModelSpec(id="m", task=Task.SEGMENTATION, source=source, weights="COCO_WITH_VOC_LABELS_V1")
    )
    assert engine.classes == tuple(weights.meta["categories"])
    assert engine.preprocess(Image.new("RGB", (300, 200))).shape == (3, 520, 780)


def test_an_architecture_of_another_task_is_refused_by_name() -> None:
    for task, name, said in (
        (Task.SEGMENTATION, "resnet50", "no semantic segmenter 'resnet50'; did you mean fcn_resnet50"),
        (Task.CLASSIFICATION, "fcn_resnet50", "no classifier 'fcn_resnet50'; did you mean"),
    ):
        with pytest.raises(LoadError, match=said):
            kind = ImageClassifier if task is Task.CLASSIFICATION else ImageSegmenter
            kind.load(ModelSpec(id="m", task=task, source=f"torchvision:{name}", weights="DEFAULT"))


def test_one_logit_is_refused_in_words(tmp_path: Path) -> None:
    model = torchvision.models.mobilenet_v3_small(num_classes=1)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    spec = ModelSpec(
        id="m", task=Task.CLASSIFICATION, source="torchvision:mobilenet_v3_small", labels=("yes",), input_size=64,
        weights=str(tmp_path / "weights.pth"),
    )  # fmt: skip
    with pytest.raises(LoadError, match="answers one logit, a yes or no by a sigmoid"):
        ImageClassifier.load(spec)
