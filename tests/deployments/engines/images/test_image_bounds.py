"""A picture that a model's preprocessing would make huge is refused by its size, before anything is made of it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import transformers
from PIL import Image
from torch import Tensor

from deployments.config import ModelSpec, Task
from deployments.engines.errors import LoadError
from deployments.engines.images.bounds import LEAST, ResizedBound
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.segmenter import ImageSegmenter
from policies.errors import InvalidRequest, PayloadTooLarge
from tests.deployments.vision_support import GOLD

EDGE = {"shortest_edge": 224}
PROCESSORS: dict[str, Any] = {
    "shortest edge": transformers.CLIPImageProcessor(size=EDGE),
    "crop_pct": transformers.ConvNextImageProcessor(size=EDGE),
    "levit": transformers.LevitImageProcessor(size=EDGE),
    "no crop": transformers.TextNetImageProcessor(),
    "square": transformers.ViTImageProcessor(),
    "ratio kept": transformers.DPTImageProcessor(keep_aspect_ratio=True),
    "as it is": transformers.ViTImageProcessor(do_resize=False),
}


def bound(processor: Any) -> ResizedBound:
    def resizing(picture: Tensor) -> Any:
        return processor(images=picture, return_tensors="pt")["pixel_values"][0]

    return ResizedBound(resizing, 224 * 224)


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_resized_picture_is_measured_as_the_processor_makes_it(name: str) -> None:
    processor, measured = PROCESSORS[name], bound(PROCESSORS[name])
    largest: list[int] = []
    resize = processor.resize

    def remember(*args: Any, **kwargs: Any) -> Any:
        made = resize(*args, **kwargs)
        largest.append(made.shape[-2] * made.shape[-1])
        return made

    processor.resize = remember
    try:
        for width, height in ((300, 200), (64, 1500), (1000, 40)):
            largest.clear()
            pixels = processor(images=Image.new("RGB", (width, height)), return_tensors="pt")["pixel_values"]
            made = max([pixels.shape[-2] * pixels.shape[-1], *largest])
            # The crop in ConvNeXt's own resize makes it a lower bound there.
            assert measured.pixels(width, height) >= made
            if name != "crop_pct":
                assert measured.pixels(width, height) == made
    finally:
        del processor.resize


@pytest.mark.parametrize(
    ("name", "size", "refused"),
    [
        ("shortest edge", (1, 16_384), True),
        ("shortest edge", (16_384, 1), True),
        ("shortest edge", (2048, 1), True),
        ("shortest edge", (1200, 100), False),
        ("shortest edge", (5000, 4000), False),
        ("crop_pct", (16_384, 1), True),
        ("levit", (1, 2048), True),
        ("no crop", (2048, 1), True),
        ("square", (16_384, 1), False),
        ("square", (5000, 5000), False),
        ("as it is", (5000, 5000), True),
        ("as it is", (2000, 2000), False),
    ],
)
def test_only_what_becomes_huge_is_refused(name: str, size: tuple[int, int], refused: bool) -> None:
    measured = bound(PROCESSORS[name])
    tracemalloc.start()
    try:
        if refused:
            with pytest.raises(PayloadTooLarge, match=f"{size[0]} x {size[1]} pixels, which .* Crop it") as error:
                measured.check(*size)
            assert (error.value.code, error.value.param) == ("image_too_large", "inputs")
        else:
            measured.check(*size)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["ResNet50_Weights.IMAGENET1K_V2", "FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1"])
def test_torchvisions_presets_are_measured_too(name: str) -> None:
    preset = torchvision.models.get_weight(name).transforms()
    measured = ResizedBound(preset, preset.resize_size[0] ** 2)
    side = preset.resize_size[0]
    assert measured.pixels(400, 100) == 4 * side * side
    with pytest.raises(PayloadTooLarge):
        measured.check(16_384, 1)


def test_what_cannot_be_measured_is_estimated_from_above() -> None:
    def fails(picture: Tensor) -> Any:
        return picture.cpu()

    measured = ResizedBound(fails, 224 * 224)
    assert measured.limit == LEAST
    measured.check(1000, 100)
    with pytest.raises(PayloadTooLarge):
        measured.check(16_384, 1)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ImageClassifier:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v3_small(num_classes=3).state_dict(), folder / "w.pth")
    spec = ModelSpec(
        id="m", task=Task.CLASSIFICATION, source="torchvision:mobilenet_v3_small", weights=str(folder / "w.pth"),
        labels=("a", "b", "c"), transforms="MobileNet_V3_Small_Weights.IMAGENET1K_V1",
    )  # fmt: skip
    return ImageClassifier.load(spec)


def test_a_thin_picture_never_reaches_the_model(engine: ImageClassifier) -> None:
    with pytest.raises(PayloadTooLarge, match="this model resizes to"):
        engine.preprocess(Image.new("RGB", (16_384, 1)))
    engine.preprocess(Image.new("RGB", (640, 40)))


def test_what_the_preprocessing_cannot_take_is_a_client_error(
    engine: ImageClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_image: Image.Image) -> Tensor:
        raise ValueError("height and width must be > 0")

    monkeypatch.setattr(engine, "_preprocess", fails)
    with pytest.raises(InvalidRequest, match="cannot take an image of 30 x 20 pixels .height and width must be > 0"):
        engine.preprocess(Image.new("RGB", (30, 20)))


def test_a_thin_picture_to_calibrate_on_is_named(engine: ImageClassifier, tmp_path: Path) -> None:
    for number in range(100):
        Image.new("RGB", (16_384, 1) if number == 0 else (30, 20)).save(tmp_path / f"{number:03}.png")
    with pytest.raises(LoadError, match="calibration image .*000.png: .* Crop it"):
        engine.calibration_sample(tmp_path)


def test_wide_pictures_run_in_parts_and_answer_as_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segmenter's input is as wide as the picture: a batch of wide ones is no larger than one of squares."""
    torch.manual_seed(0)
    torch.save(
        torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=3).state_dict(),
        tmp_path / "w.pth",
    )
    spec = ModelSpec(
        id="m", task=Task.SEGMENTATION, source="torchvision:lraspp_mobilenet_v3_large", labels=("a", "b", "c"),
        weights=str(tmp_path / "w.pth"), transforms="LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1",
    )  # fmt: skip
    engine = ImageSegmenter.load(spec)
    pixels = [torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(k)) for k in range(5)]
    seen: list[int] = []
    run = engine._run
    monkeypatch.setattr(engine, "_run", lambda batch: seen.append(len(batch)) or run(batch))
    whole = engine.forward(pixels, [GOLD] * 5)
    monkeypatch.setattr(engine._resized, "limit", 2 * 64 * 96)
    parts = engine.forward(pixels, [GOLD] * 5)
    assert seen == [5, 2, 2, 1]
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one.logits, other.logits, atol=1e-5)
