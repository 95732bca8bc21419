"""The shipped vision models, calibrated once, and generated pictures: shared by the tests of both engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from deployments.config import REPOSITORY, ModelSpec, Task
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.engine import VisionEngine
from policies.calibration.calibration import Calibration
from policies.terms import DEGRADED_DISCLOSURE, Disclosure, Modulation

SECRET = b"a secret of the tests, 32 bytes."
SHARED = REPOSITORY.parent / "shared"
GOLD = Modulation()
Engine = TypeVar("Engine", bound=VisionEngine)


def needs_shared(path: str) -> Path:
    """A file under ../shared; skips the test where this checkout lies without it."""
    if not (SHARED / path).exists():
        pytest.skip(f"needs {SHARED / path}, which is not part of the repository")
    return SHARED / path


def at(utility: float, disclosure: Disclosure = DEGRADED_DISCLOSURE, **focus: float) -> Modulation:
    """Terms at a level, with focus by class name."""
    return Modulation(utility=utility, focus=focus, disclosure=disclosure)


def shipped(model: str, task: Task) -> ModelSpec:
    """The specification of a model that ships with the project."""
    return ModelSpec(id=model, task=task, source=str(REPOSITORY / "models" / model))


def calibrated(engine: Engine) -> Engine:
    """The engine with its bundled sample's calibration in place."""
    sample = engine.calibration_sample(REPOSITORY / "models" / engine.model_id / "calibration.safetensors")
    engine.install(engine.fit(sample, SECRET), SECRET)
    return engine


def mistaken(calibration: Calibration) -> Calibration:
    """The same noise, its levels solved wrong: what is sold as 0.7 is given where 0.4 was found."""
    return replace(calibration, curve=tuple((at, 1.0 - (1.0 - agreed) / 2) for at, agreed in calibration.curve))


def scenes(count: int, width: int, height: int, seed: int = 0) -> list[Image.Image]:
    """Smooth coloured pictures: low-resolution noise, enlarged."""
    chance = np.random.default_rng(seed)
    coarse = chance.integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC) for pixels in coarse]


def of_torchvision(architecture: str, path: Path, labels: list[str]) -> ModelSpec:
    """A state dict of one's own, pictures squashed to 64 pixels."""
    return ModelSpec(
        id="mine",
        task=Task.CLASSIFICATION,
        source=f"torchvision:{architecture}",
        weights=str(path),
        labels=tuple(labels),
        input_size=64,
    )


def saved_resnet(folder: Path, name: str) -> ImageClassifier:
    """A ResNet-18 of three classes with random weights, in the form that a file's name tells."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    path = folder / name
    if name.endswith(".safetensors"):
        save_file(state, path)
    elif name == "parallel.pth":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if name == "wrapped.pth" else state, path)
    return ImageClassifier.load(of_torchvision("resnet18", path, ["a", "b", "c"]))
