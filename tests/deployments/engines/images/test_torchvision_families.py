"""Every family of torchvision's classifiers and segmenters, with random weights: torchvision's own answer at level 1.0,
levels and focus that move it, or one line on why it is not served. docs/vision-models.md lists them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from deployments.config import Task
from deployments.engines.errors import LoadError
from deployments.engines.images.loading.torchvision_models import IMAGENET_MEAN, IMAGENET_STD, _SquareResize
from policies.head.final import logits_of
from tests.deployments.random_vision_models import (
    PICTURES,
    balance,
    check_levels_of_labels,
    check_levels_of_masks,
    class_map,
    load,
    seen,
)
from tests.deployments.shards import shard
from tests.deployments.vision_families import (
    CLASSES,
    FEW,
    SIDE,
    TORCHVISION,
    TORCHVISION_REFUSED,
    TORCHVISION_SEGMENTERS,
)
from tests.deployments.vision_support import GOLD

ALL = bool(os.environ.get("AIM_ALL_MODELS"))
"""Whether every model of torchvision is tried, not the smallest of each family alone: minutes."""


def built(architecture: str, folder: Path, side: int, **arguments: Any) -> nn.Module:
    """A model of torchvision with random weights that tell pictures apart, saved as a state dict."""
    torch.manual_seed(0)
    model = seen(torchvision.models.get_model(architecture, weights=None, num_classes=len(CLASSES), **arguments))
    square = _SquareResize(side, IMAGENET_MEAN, IMAGENET_STD)
    pixels = torch.stack([square(picture) for picture in PICTURES[: FEW.get(architecture, 24)]])
    if architecture not in TORCHVISION_REFUSED and not architecture.startswith("lraspp"):
        balance(model, lambda: logits_of(model(pixels)))
    torch.save(model.state_dict(), folder / "w.pth")
    return model


def every(chosen: Iterable[str], module: Any) -> list[str]:
    return shard(torchvision.models.list_models(module) if ALL else chosen)


def chosen(architecture: str) -> dict[str, Any]:
    """What a specification says of an architecture, by the smallest of its family."""
    near = [name for name in TORCHVISION if name.split("_")[0].rstrip("0123456789") in architecture]
    return TORCHVISION.get(architecture) or next((TORCHVISION[name] for name in near if TORCHVISION[name]), {})


@pytest.mark.parametrize("architecture", every([*TORCHVISION, *TORCHVISION_REFUSED], torchvision.models))
def test_a_classifier_of_torchvision_is_its_model(architecture: str, tmp_path: Path) -> None:
    more = {"input_size": SIDE, **chosen(architecture)}
    only = {"aux_logits": False, "init_weights": False} if architecture in ("googlenet", "inception_v3") else {}
    model = built(architecture, tmp_path, more["input_size"], **more.get("arguments", {}), **only)
    source = f"torchvision:{architecture}"
    if why := TORCHVISION_REFUSED.get(architecture):
        with pytest.raises(LoadError, match=why):
            load(Task.CLASSIFICATION, source, weights=str(tmp_path / "w.pth"), labels=CLASSES, **more)
        return
    engine = load(Task.CLASSIFICATION, source, weights=str(tmp_path / "w.pth"), labels=CLASSES, **more)
    (tmp_path / "w.pth").unlink()  # up to 500 MB
    for picture in (PICTURES[0], PICTURES[-1]):
        (answer,) = engine.predict([picture], [GOLD])
        with torch.inference_mode():
            wanted = model(engine.preprocess(picture)[None]).softmax(1)[0].tolist()
        assert dict(answer) == pytest.approx(dict(zip(CLASSES, wanted, strict=True)), abs=1e-5)
    check_levels_of_labels(engine, PICTURES[: FEW.get(architecture, 24)])


@pytest.mark.parametrize("architecture", every(TORCHVISION_SEGMENTERS, torchvision.models.segmentation))
def test_a_segmenter_of_torchvision_is_its_model(architecture: str, tmp_path: Path) -> None:
    only = {} if architecture.startswith("lraspp") else {"aux_loss": True}
    model = built(architecture, tmp_path, SIDE, weights_backbone=None, **only)
    source = f"torchvision:{architecture}"
    engine = load(
        Task.SEGMENTATION, source, weights=str(tmp_path / "w.pth"), labels=CLASSES, input_size=SIDE, max_batch_size=4
    )
    picture = PICTURES[0]
    (answer,) = engine.predict([picture], [GOLD])
    with torch.inference_mode():
        wanted = model(engine.preprocess(picture)[None])["out"]
    full = F.interpolate(wanted, (picture.height, picture.width), mode="bilinear", align_corners=False)[0].argmax(0)
    assert (class_map(answer) == full.numpy()).mean() > 0.999
    check_levels_of_masks(engine, PICTURES[:8])
