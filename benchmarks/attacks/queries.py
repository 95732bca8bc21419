"""Near-duplicates that an attacker sends, and a batched look at what the final layer gets of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from deployments.engines.images.decoding import decode_image
from deployments.engines.images.duplicates import Duplicate
from deployments.engines.images.engine import VisionEngine

SEED = 1000
"""The attacker draws other near-duplicates than those that the field's metric is fitted on."""


def usual(image: Image.Image, number: int, step: int) -> Image.Image:
    """A picture mirrored, shifted by up to two steps, jittered by up to 8/255, re-encoded; number 0 is itself."""
    return Duplicate.draw(number and SEED + number).apply(image, step)


def wide(image: Image.Image, number: int) -> Image.Image:
    """A picture turned by up to 8 degrees, cropped to 85 % or more, with other brightness, contrast and colour: changes
    that the field's metric has not been fitted on; number 0 is itself."""
    if number == 0:
        return image
    rng = np.random.default_rng(SEED + number)
    turned = image.rotate(float(rng.uniform(-8, 8)), Image.Resampling.BILINEAR)
    share = float(rng.uniform(0.85, 1.0))
    left, top = ((1 - share) * float(rng.random()) * side for side in image.size)
    box = (left, top, left + share * image.width, top + share * image.height)
    changed = turned.resize(image.size, Image.Resampling.BILINEAR, box=box)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        changed = enhance(changed).enhance(float(rng.uniform(0.8, 1.2)))
    return changed.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else changed


def read(files: Sequence[Path]) -> Iterator[Image.Image]:
    """The pictures of files."""
    for file in files:
        yield decode_image(file.read_bytes())


@torch.inference_mode()
def final_inputs(engine: VisionEngine, images: Iterator[Image.Image], batch: int) -> Iterator[Tensor]:
    """What the final layer gets of each picture, in batches: [n, H] or [n, H, h, w] float32."""
    seen: list[Tensor] = []
    hook = engine.final.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    engine.model.to(memory_format=torch.channels_last)
    try:
        while part := list(islice(images, batch)):
            pixels = torch.stack([engine.preprocess(image) for image in part])
            engine._run(pixels.to(memory_format=torch.channels_last))
            yield seen.pop().float()
    finally:
        hook.remove()
        engine.model.to(memory_format=torch.contiguous_format)
