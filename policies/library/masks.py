"""What the levels of masks are solved on: pixels of the answer as the model gives it, interpolated or not."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.calibration.sample import CalibrationSample
from policies.calibration.schemes import Scheme
from policies.field.metric import duplicate_metric
from policies.head.blocks import block_means
from policies.head.final import Final, logits_of
from policies.library.duplicates import COPIES, MOST_STEPS, can_shift, duplicate, undo
from policies.library.inputs import Call
from policies.library.samples import clean, enough, final_input, watching

MOST_PICTURES = 512
"""Pictures that the levels are solved on, at most."""
POINTS = 128
"""Pixels that are judged of each picture: neighbours say nearly the same, so some stand for all."""
CELLS = 300
"""Cells of a picture's map whose near-duplicates the field's metric is fitted on."""


class PixelReadout:
    """Logits of pixels, each from the four cells around it.

    Args:
        weights: [M, 4] float32, of the rows 4 i to 4 i + 3 in pixel i.
    """

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights
        self._rows = torch.arange(weights.numel(), device=weights.device).reshape(weights.shape)

    def __call__(self, logits: Tensor) -> Tensor:
        """[4 M, K] to [M, K]."""
        return F.embedding_bag(self._rows, logits, per_sample_weights=self._weights, mode="sum")


def mask_sample(model: nn.Module, final: Final, calls: Iterable[Call], scheme: Scheme) -> CalibrationSample:
    """Random pixels of each picture's answer, with the cells of the map that they are read from.

    Each place of an answer counts alike, borders of blocks and of the picture included; the rows see the mean of their
    block in the whole picture, as the head does.

    Raises:
        ValueError: fewer than 100 pixels.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    nearby: list[Tensor] = []
    pictures = 0
    for call in calls:
        if pictures >= MOST_PICTURES:
            break
        with watching(final.module) as seen:
            size = logits_of(call.of(model)).shape[-2:]
        parts += [
            _pixels(maps, final.align_corners, (size[0], size[1]), scheme.block, seed)
            for seed, maps in enumerate(torch.split(seen[-1], 1), start=pictures)
        ]
        if pictures < scheme.duplicated:
            nearby += _nearby(model, final, call, seen[-1].shape[-2:])
        pictures += len(seen[-1])
    features, means, weights = (torch.cat(part) for part in zip(*parts, strict=True)) if parts else [torch.zeros(0)] * 3
    logits = torch.cat([clean(final.module, enough(features)[at : at + 4096]) for at in range(0, len(features), 4096)])
    metric = None
    if nearby:
        copies = torch.cat(nearby)
        answers = clean(final.module, copies[:, 0].to(features.device, features.dtype)).argmax(dim=1)
        metric = duplicate_metric(copies, copies[:, 0], answers.cpu(), scheme.directions)
    readout = None if final.align_corners is None else PixelReadout(weights)
    return CalibrationSample(features, logits, readout, metric, means)


def _pixels(
    maps: Tensor, align_corners: bool | None, size: tuple[int, int], block: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cells that random pixels of one picture's answer are read from.

    Args:
        maps: [1, H, h, w], the final layer's input.
        align_corners: as in `Final`; None: a pixel is a cell.
        size: height and width of the answer.

    Returns:
        Features [n, H] of the cells, the means of their blocks, and their weights [points, 4], or [points, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    y, x = (torch.randint(side, (POINTS,), generator=generator).to(maps.device) for side in size)
    if align_corners is None:
        rows, columns, weights = y[:, None], x[:, None], torch.ones(len(y), 1, device=maps.device)
    else:
        sides = [(at, maps.shape[i], size[i - 2]) for i, at in ((2, y), (3, x))]
        (top, low), (left, right) = (_source(at, source, side, align_corners) for at, source, side in sides)
        rows = torch.stack([top, (top + 1).clamp(max=maps.shape[2] - 1)], dim=1)[:, [0, 0, 1, 1]]
        columns = torch.stack([left, (left + 1).clamp(max=maps.shape[3] - 1)], dim=1)[:, [0, 1, 0, 1]]
        weights = torch.stack([(1 - low) * (1 - right), (1 - low) * right, low * (1 - right), low * right], dim=1)
    rows, columns = rows.flatten(), columns.flatten()
    means = block_means(maps, block)
    return maps[0, :, rows, columns].T, means[0, :, rows // block, columns // block].T, weights


def _source(at: Tensor, source: int, size: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Places among `size` that `source` cells are interpolated to: the cell before each, and the next one's weight."""
    if align_corners:
        place = at * ((source - 1) / max(1, size - 1))
    else:
        place = ((at + 0.5) * (source / size) - 0.5).clamp(min=0.0)
    low = place.floor().long().clamp(max=source - 1)
    return low, place - low


def _nearby(model: nn.Module, final: Final, call: Call, coarse: torch.Size) -> list[Tensor]:
    """Features [M, COPIES, H] of some cells, as near-duplicates of the pictures see them; nothing without pictures."""
    pictures = call.pictures()
    if pictures is None:
        return []
    step = max(1, round(pictures.shape[-2] / coarse[0]))
    edge = MOST_STEPS if min(coarse) > 2 * MOST_STEPS else 0
    if not can_shift(pictures, step):
        return []
    copies = []
    for number in range(COPIES):
        maps = undo(final_input(model, final, call.with_pictures(duplicate(pictures, number, step))), number)
        inner = maps[..., edge : maps.shape[-2] - edge, edge : maps.shape[-1] - edge].flatten(2)
        cells = inner[..., :: max(1, inner.shape[-1] // CELLS)]
        copies.append(cells.transpose(1, 2).flatten(0, 1).float().cpu())
    return [torch.stack(copies, dim=1)]
