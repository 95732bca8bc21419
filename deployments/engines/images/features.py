"""Features of pictures to calibrate on: what the final layer is given, and its scatter over near-duplicates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from deployments.engines.images.duplicates import Duplicate
from policies.answers import highest
from policies.calibration.schemes import Scheme
from policies.field.metric import duplicate_metric

if TYPE_CHECKING:
    from deployments.engines.images.engine import VisionEngine

COPIES = 8
"""How often a picture is sent again to fit the field's metric on."""


def sample_features(
    engine: VisionEngine, images: Iterable[Image.Image], scheme: Scheme, *, refit: bool = False
) -> tuple[Tensor, Tensor | None, int]:
    """What to calibrate on, of pictures, on the CPU.

    Args:
        scheme: whether and how the field's metric is fitted.
        refit: whether the field has its metric already.

    Returns:
        features: [N, H] float16 inputs of the final layer, or for masks a few tiles of each picture, [tiles, H, h, w].
        metric: [H, m] float32, from near-duplicates of the first of them; None where the scheme has none.
        scale: output pixels per logit (1: no mask).
    """
    kept: list[Tensor] = []
    nearby: list[Tensor] = []
    scales: list[int] = []
    metric = scheme.directions > 0 and not refit
    for number, (image, features) in enumerate(_featured(engine, images)):
        kept.append(engine.take(features, number).half().cpu())
        scales.append(max(1, round(image.height / features.shape[-2])) if features.ndim == 4 else 1)
        if metric and number < scheme.duplicated:
            nearby.append(_duplicates(engine, image, scales[-1]).float().cpu())
    sample, scale = torch.cat(kept), int(median(scales))
    if not metric:
        return sample, None, scale
    chosen = torch.cat(nearby)
    different = chosen[:, 0] if sample.ndim == 4 else sample.float()
    clean = engine.clean_logits(different[..., None, None] if sample.ndim == 4 else different)
    fitted = duplicate_metric(chosen, different, highest(clean).flatten().cpu(), scheme.directions)
    return sample, fitted, scale


def _duplicates(engine: VisionEngine, image: Image.Image, scale: int) -> Tensor:
    """Features [M, COPIES, H] of a picture's near-duplicates; a shift is one cell of a map, or a 16th of a side."""
    ways = [Duplicate.draw(number) for number in range(COPIES)]
    step = scale if scale > 1 else max(1, min(image.size) // 16)
    found = _featured(engine, (way.apply(image, step) for way in ways))
    return engine.nearby([features for _, features in found], ways)


def _featured(engine: VisionEngine, images: Iterable[Image.Image]) -> Iterator[tuple[Image.Image, Tensor]]:
    """Pictures, each with its final-layer input [1, ...], float32; those of one shape run together."""
    waiting = iter(images)
    while some := list(islice(waiting, engine.spec.max_batch_size)):
        found: dict[int, Tensor] = {}
        shapes: dict[torch.Size, list[tuple[int, Tensor]]] = {}
        for at, image in enumerate(some):
            pixels = engine.preprocess(image)
            shapes.setdefault(pixels.shape, []).append((at, pixels))
        for group in shapes.values():
            features = engine.final_input(torch.stack([pixels for _, pixels in group]))
            found |= {at: features[i : i + 1] for i, (at, _) in enumerate(group)}
        yield from ((image, found[at]) for at, image in enumerate(some))
