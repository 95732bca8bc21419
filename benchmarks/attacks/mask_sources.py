"""Where noise on masks comes from: fresh for every query, or a field on block means."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attacks.mask_features import Scene
from benchmarks.attacks.sources import secret
from deployments.engines.images.segmenter import ImageSegmenter
from policies.calibration.calibration import Calibration
from policies.calibration.sample import CalibrationSample
from policies.field.ladder import NoiseLadder
from policies.field.variance import POSITIONS, variance
from policies.head.blocks import spread

Noise = Callable[[Scene, slice, float], Tensor]
"""A scene's queries at a level to their modulated logits [Q, K, h, w]."""


def fresh_noise(number: int, examples: list[Scene]) -> Noise:
    """The paper's noise, independent for each logit; its scale solved at the pictures' resolution."""
    generator, scales = torch.Generator().manual_seed(number), dict[float, float]()

    def noise(scene: Scene, queries: slice, level: float) -> Tensor:
        if level not in scales:
            at = solved_position(level, examples, lambda one, at: _noisy(one, slice(1), variance(at) ** 0.5, generator))
            scales[level] = variance(at) ** 0.5
        return _noisy(scene, queries, scales[level], generator)

    return noise


def ladders(engine: ImageSegmenter, sample: CalibrationSample, number: int, accounts: int) -> list[Noise]:
    """The field as installed, with a key for each account; the levels of each as a calibration solves them."""
    keys = [number, *(1000 * (number + 1) + account for account in range(1, accounts))]
    return [field_noise(engine, engine.fit(sample, secret(key)), key) for key in keys]


def field_noise(engine: ImageSegmenter, calibration: Calibration, number: int) -> Noise:
    """The noise of a field under a secret, its levels as the calibration says."""
    own = calibration.ladder(secret(number), features=engine.features, classes=len(engine.classes))
    return lambda scene, queries, level: add_field(own, scene, queries, calibration.position(level))


def _noisy(scene: Scene, queries: slice, scale: float, generator: torch.Generator) -> Tensor:
    logits = scene.logits[queries].float()
    return logits + scale * torch.randn(logits.shape, generator=generator)


def add_field(ladder: NoiseLadder, scene: Scene, queries: slice, position: int) -> Tensor:
    """Modulated logits [Q, K, h, w] of a scene's queries, by the field on its means."""
    logits, means = scene.logits[queries].float(), scene.means[queries].float()
    height, width = logits.shape[-2:]
    block = -(-height // means.shape[-2])
    noise = (ladder.phi(rows_of(means)) @ ladder.matrix(position)).reshape(len(means), *means.shape[-2:], -1)
    return logits + spread(noise.movedim(-1, 1), block, height, width)


def solved_position(level: float, examples: list[Scene], make: Callable[[Scene, int], Tensor]) -> int:
    """The position of the ladder's grid of variances at which labels of some scenes agree as often as the level."""
    clean = [labels_of(scene.logits[:1].float(), scene) for scene in examples]
    low, high = 0, POSITIONS
    while high - low > POSITIONS // 2**12:
        middle = (low + high) // 2
        same = [(labels_of(make(s, middle), s) == c).float().mean() for s, c in zip(examples, clean, strict=True)]
        low, high = (middle, high) if float(torch.stack(same).mean()) > level else (low, middle)
    return low


def labels_of(logits: Tensor, scene: Scene) -> Tensor:
    """Labels [Q, h, w] at the picture's resolution."""
    whole = F.interpolate(logits, scene.truth.shape, mode="bilinear", align_corners=False)
    return whole.max(dim=1).indices  # five times as fast as argmax


def rows_of(maps: Tensor) -> Tensor:
    """Maps [B, C, h, w] to rows [B * h * w, C]."""
    return maps.movedim(1, -1).flatten(0, -2)
