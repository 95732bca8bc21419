"""Checks of picture models: loaded as a replica loads them, and compared with their own library."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from deployments.checking.library import library_name, pictured
from deployments.checking.report import Report, counted, size, took
from deployments.config import ModelSpec, Task, resolve_path
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.decoding import decode_image
from deployments.engines.images.engine import VisionEngine
from deployments.engines.images.sample import picture_files
from deployments.engines.images.segmenter import ImageSegmenter
from policies.terms import FULL_DISCLOSURE, Modulation

SIZES = ((320, 240), (224, 224), (200, 333))
"""Of the pictures that are drawn where none are given: wider than high, square, higher than wide."""
SCORE, PIXELS = 1e-3, 0.999
"""Scores may differ by so much, and so many pixels must be the same: float32 sums in another order round otherwise."""
HALF_SCORE, HALF_PIXELS = 0.02, 0.99
"""The same in half precision, which the library is not asked in."""
CLEAN = Modulation(utility=1.0, focus={}, disclosure=FULL_DISCLOSURE)
_RUNS = 5


def check_pictures(spec: ModelSpec, report: Report, device: torch.device, given: Sequence[Path], solve: bool) -> None:
    """Fill a report.

    Args:
        given: pictures to compare on; none: those of the calibration folder, else drawn ones.
        solve: whether to solve the levels where that needs the model to run; on bundled features it is done anyway.

    Raises:
        LoadError: it cannot be loaded, or an input cannot be read.
    """
    began = time.perf_counter()
    kind = ImageClassifier if spec.task is Task.CLASSIFICATION else ImageSegmenter
    engine = kind.load(spec, device)
    weights = sum(value.numel() * value.element_size() for value in engine.model.state_dict().values())
    count = sum(value.numel() for value in engine.model.parameters())
    report.facts["classes"] = counted(engine.classes)
    report.facts["parameters"] = f"{count:,}, {size(weights)} in {spec.dtype} on {device.type}"
    report.facts["loaded in"] = took(time.perf_counter() - began)
    pictures = _pictures(spec, given)
    _compare(spec, engine, report, pictures)
    each = _speed(spec, engine, report, pictures[0])
    _levels(spec, engine, report, each, solve)


def _pictures(spec: ModelSpec, given: Sequence[Path]) -> list[Image.Image]:
    folder = resolve_path(spec.calibration) if spec.calibration else None
    files = list(given) or (picture_files(folder, len(SIZES)) if folder is not None and folder.is_dir() else [])
    return [decode_image(file.read_bytes()) for file in files] or [_drawn(*size) for size in SIZES]


def _drawn(width: int, height: int) -> Image.Image:
    """Smooth colours, the same in every process."""
    noise = torch.randint(256, (7, 9, 3), generator=torch.Generator().manual_seed(width), dtype=torch.uint8)
    return Image.fromarray(noise.numpy(), "RGB").resize((width, height), Image.Resampling.BICUBIC)


def _compare(spec: ModelSpec, engine: VisionEngine, report: Report, pictures: Sequence[Image.Image]) -> None:
    own = pictured(spec, engine.device)
    if own is None:
        report.facts["level 1.0"] = "not compared: the source is a state dict, which names no preprocessing of its own"
        return
    half = spec.dtype != "float32"
    worst, asked = 0.0, f"{library_name(spec)} on {len(pictures)} pictures"
    for image in pictures:
        (item,) = engine.forward([engine.preprocess(image)], [CLEAN])
        expected = own(image)
        if isinstance(engine, ImageSegmenter):
            labels, _ = engine.read(item.logits, (image.height, image.width))
            worst = max(worst, 1.0 - float((labels.cpu() == expected).float().mean()))
        else:
            worst = max(worst, float((item.logits.softmax(dim=0).cpu() - expected).abs().max()))
    if isinstance(engine, ImageSegmenter):
        equal, told = (
            worst <= 1.0 - (HALF_PIXELS if half else PIXELS),
            f"at most {worst:.2%} of a picture's pixels differ",
        )
    else:
        equal, told = worst <= (HALF_SCORE if half else SCORE), f"scores differ by at most {worst:.1g}"
    report.facts["level 1.0"] = f"{'equals' if equal else 'differs from'} {asked}: {told}"
    if not equal:
        report.problems.append(
            f"level 1.0 is not what {library_name(spec)} answers ({told}); look at labels, transforms and input_size"
        )


def _speed(spec: ModelSpec, engine: VisionEngine, report: Report, image: Image.Image) -> float:
    """Seconds a picture in a full batch."""
    pixels, batch = engine.preprocess(image), spec.max_batch_size

    def timed(count: int) -> float:
        began = time.perf_counter()
        engine.forward([pixels] * count, [CLEAN] * count)
        return time.perf_counter() - began

    timed(1)
    alone, together = (median(timed(count) for _ in range(_RUNS)) for count in (1, batch))
    threads = f" on {torch.get_num_threads()} threads" if engine.device.type == "cpu" else ""
    report.facts["speed"] = f"{took(alone)} for a picture alone, {took(together / batch)} each of {batch}{threads}"
    return together / batch


def _levels(spec: ModelSpec, engine: VisionEngine, report: Report, each: float, solve: bool) -> None:
    if spec.calibration is None:
        report.facts["calibration"] = "none, without which the model is refused"
        report.problems.append(
            "levels below 1.0 need calibration: at least 100 pictures that the model was not trained on, some"
            f" {engine.calibration_images:,} for levels within 0.01; put the path of their folder in calibration"
        )
        return
    path = resolve_path(spec.calibration)
    if path.is_dir() and not solve:
        files = len(picture_files(path, engine.calibration_images))
        told = f"{files:,} pictures of {path.name}, some {took(files * each)} to answer, then the levels are solved"
        report.facts["calibration"] = f"{told}; --levels does it now"
        return
    began = time.perf_counter()
    sample = engine.calibration_sample(path)
    calibration = engine.fit(sample, secrets.token_bytes(32))
    report.facts["calibration"] = (
        f"{calibration.answers:,} inputs of {path.name}; solved in {took(time.perf_counter() - began)}"
    )
    report.facts["floor"] = f"{calibration.floor:.2f}: about the lowest level; another noise secret moves it a little"
