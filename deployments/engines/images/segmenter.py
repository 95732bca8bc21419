"""Semantic segmentation: models of both libraries whose last layer is a 1x1 convolution, such as SegFormer."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from deployments.config import Task
from deployments.engines.images.decoding import encode_label_map, encode_mask
from deployments.engines.images.duplicates import MOST_STEPS, Duplicate
from deployments.engines.images.engine import VisionEngine
from deployments.engines.images.items import ItemLogits
from deployments.engines.images.runs import run_lengths
from deployments.engines.images.sample import UpsamplingReadout, readout_points
from deployments.engines.live import Kept
from policies.answers import highest
from policies.calibration.sample import CalibrationSample
from policies.calibration.schemes import MASKS
from policies.head.blocks import block_means
from policies.terms import Modulation

TILES_PER_IMAGE = 6
CELLS_PER_IMAGE = 300
"""Cells of a picture's map whose near-duplicates the field's metric is fitted on."""
_WHOLE_ELEMENTS = 2**25
"""Up to 128 MB of float32 a picture is upsampled in one piece, beyond that in bands of rows."""
AUDIT_EVERY = 7
"""The audit compares every seventh line and column: reading a mask twice would cost a fourth of a forward. Odd, so that
it meets all places between the logits of a map at a 4th, 8th or 16th of the picture equally often."""


class Segment(NamedTuple):
    """One class that a picture shows.

    Attributes:
        score: mean probability of the class over its pixels, in the digits that the terms disclose; None: in none.
        mask: PNG of mode L at the picture's size, 255 where the class is.
    """

    label: str
    score: float | None
    mask: bytes

    def to_json(self) -> dict[str, str | float | None]:
        """As Hugging Face's Inference API answers it, the mask in base64."""
        return {"label": self.label, "score": self.score, "mask": base64.b64encode(self.mask).decode()}


class Region(NamedTuple):
    """One class of a label map: its number among `classes`, and what of its score the terms disclose."""

    number: int
    label: str
    score: float | None


class LabelMap(NamedTuple):
    """A picture's classes, and which pixel is of which.

    Attributes:
        map: PNG at the picture's size, pixels are indices of classes.
    """

    regions: tuple[Region, ...]
    map: bytes

    def to_json(self) -> dict[str, Any]:
        """The classes, and the PNG in base64."""
        labels = [{"index": number, "label": label, "score": score} for number, label, score in self.regions]
        return {"labels": labels, "map": base64.b64encode(self.map).decode()}


class Runs(NamedTuple):
    """One class that a picture shows, its mask as COCO's run-length encoding.

    Attributes:
        size: height and width in pixels.
        counts: the runs, compressed.
    """

    label: str
    score: float | None
    size: tuple[int, int]
    counts: str

    def to_json(self) -> dict[str, Any]:
        """As `pycocotools.mask.decode` takes its `segmentation`."""
        segmentation = {"size": list(self.size), "counts": self.counts}
        return {"label": self.label, "score": self.score, "segmentation": segmentation}


class ImageSegmenter(VisionEngine):
    """A semantic segmenter; an audit row is a pixel of the answer, of which the audit takes some."""

    task = Task.SEGMENTATION
    calibration_images = 256
    live_capacity = 256 * TILES_PER_IMAGE
    live_judged = 64 * TILES_PER_IMAGE
    scheme = MASKS
    least_live = 50

    def predict(self, images: Sequence[Image.Image], modulations: Sequence[Modulation]) -> list[list[Segment]]:
        """Segment pictures of several tenants in one batch.

        Returns:
            Per picture, the classes present in its mask, in the order of `classes`.
        """
        items = self.forward([self.preprocess(image) for image in images], modulations)
        sizes = [(image.height, image.width) for image in images]
        return [self.answer(*row) for row in zip(items, modulations, sizes, strict=True)]

    @torch.inference_mode()
    def answer(self, item: ItemLogits, modulation: Modulation, size: tuple[int, int]) -> list[Segment]:
        """One picture's segments from its modulated logits, at (height, width). Safe from any thread."""
        pixels, there = self._labelled(item, modulation, size)
        return [Segment(self.classes[k], score, encode_mask(pixels == k)) for k, score in there.items()]

    @torch.inference_mode()
    def label_map(self, item: ItemLogits, modulation: Modulation, size: tuple[int, int]) -> LabelMap:
        """As `answer`, in one picture."""
        pixels, there = self._labelled(item, modulation, size)
        regions = tuple(Region(k, self.classes[k], score) for k, score in there.items())
        return LabelMap(regions, encode_label_map(pixels, len(self.classes)))

    @torch.inference_mode()
    def runs(self, item: ItemLogits, modulation: Modulation, size: tuple[int, int]) -> list[Runs]:
        """As `answer`, in runs of pixels."""
        pixels, there = self._labelled(item, modulation, size)
        return [Runs(self.classes[k], score, size, run_lengths(pixels == k)) for k, score in there.items()]

    def _labelled(
        self, item: ItemLogits, modulation: Modulation, size: tuple[int, int]
    ) -> tuple[np.ndarray, dict[int, float | None]]:
        """Labels [height, width] int16, and of the classes among them the score that the terms disclose; counted."""
        labels, scores = self.read(item.logits, size)
        self._scales.append(max(1, round(size[0] / item.lines)))
        self._count_pixels(item, modulation.utility, size)
        shown = modulation.disclosure
        return labels.cpu().numpy(), {k: shown.score(score) for k, score in enumerate(scores) if score > 0.0}

    @torch.inference_mode()
    def read(self, logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, list[float]]:
        """Logits [K, h, w] read at (height, width).

        Returns:
            Labels [height, width] int16, and per class its mean probability over its pixels, 0 where it has none.
        """
        classes = logits.shape[0]
        bands, count, total = [], *torch.zeros(2, classes, dtype=torch.float64, device=logits.device)
        for band in _upsampled(logits, size):
            top, labels = band.max(dim=0)
            probability = 1.0 / (band - top).exp_().sum(dim=0)
            count += torch.bincount(labels.flatten(), minlength=classes)
            total += torch.bincount(labels.flatten(), probability.double().flatten(), minlength=classes)
            bands.append(labels.to(torch.int16))
        return torch.cat(bands), (total / count.clamp(min=1)).tolist()

    def _count_pixels(self, item: ItemLogits, level: float, size: tuple[int, int]) -> None:
        """Agreement at the resolution of the answer."""
        lines, columns = (
            torch.arange(min(AUDIT_EVERY // 2, side - 1), side, AUDIT_EVERY, device=item.clean.device) for side in size
        )
        agreed = rows = len(lines) * len(columns)
        if level < 1.0:
            clean, utility = (_labels_at(logits, size, lines, columns) for logits in (item.clean, item.utility))
            agreed = int((clean == utility).sum())
        self._count(item.clean.half(), level, rows, agreed)

    def take(self, features: Tensor, number: int) -> Tensor:
        """6 tiles of one picture's map [1, H, h, w]: [6, H, 8, 8], two blocks high and wide, dealt out in turn.

        Over a sample each place of the grid comes equally often, so that each part of a picture weighs what it does in
        an answer: tiles at random places favour the middle, which shifted delivered levels by 0.04.
        """
        height, width = features.shape[-2:]
        tall, wide = (min(2 * self.scheme.block, size) for size in (height, width))
        rows, columns = (1 + (size - tile) // self.scheme.block for size, tile in ((height, tall), (width, wide)))
        tiles = []
        for turn in range(number * TILES_PER_IMAGE, (number + 1) * TILES_PER_IMAGE):
            deal = torch.Generator().manual_seed(turn // (rows * columns))
            cell = int(torch.randperm(rows * columns, generator=deal)[turn % (rows * columns)])
            y, x = cell // columns * self.scheme.block, cell % columns * self.scheme.block
            tiles.append(features[0, :, y : y + tall, x : x + wide])
        return torch.stack(tiles)

    def nearby(self, features: Sequence[Tensor], ways: Sequence[Duplicate]) -> Tensor:
        """Some cells of a picture's map, as the duplicates see them."""
        maps = torch.cat([way.undo(map_) for map_, way in zip(features, ways, strict=True)])
        edge = MOST_STEPS if min(maps.shape[-2:]) > 2 * MOST_STEPS else 0
        cells = maps[..., edge : maps.shape[-2] - edge, edge : maps.shape[-1] - edge].flatten(2)
        return cells[..., :: max(1, cells.shape[-1] // CELLS_PER_IMAGE)].permute(2, 0, 1)

    def live_rows(self) -> Kept:
        """As the base class has it, with the scale of recent answers."""
        return replace(super().live_rows(), scale=self._scale())

    def sample_of(self, kept: Kept) -> tuple[CalibrationSample, Tensor]:
        """Tiles of live maps as a sample, and the group of each pixel that is read of them."""
        sample = self._sample(kept.rows.to(self.device), max(kept.scale, self._scale()), None)
        return sample, kept.groups.repeat_interleave(readout_points(len(kept.rows), len(self.classes)))

    def _sample(self, features: Tensor, scale: int, metric: Tensor | None) -> CalibrationSample:
        features = features.float()
        tiles, _, height, width = features.shape
        logits = self.clean_logits(features)
        points = readout_points(tiles, len(self.classes))
        readout = UpsamplingReadout(tiles, height, width, scale, self.scheme.block, points, features.device)
        means = block_means(features, self.scheme.block).flatten(2).transpose(1, 2)
        seen = means[:, _square_of(height, width, self.scheme.block, features.device)].flatten(0, 1)
        return CalibrationSample(_cells(features), _cells(logits), readout, metric, seen)

    def _scale(self) -> int:
        return int(median(self._scales or [1]))


def _cells(maps: Tensor) -> Tensor:
    """Maps [B, C, h, w] to their cells [B * h * w, C]."""
    return maps.movedim(1, -1).flatten(0, 2)


def _square_of(height: int, width: int, block: int, device: torch.device) -> Tensor:
    """The number of the square that each cell of a map lies in, [height * width] int64."""
    y, x = (torch.arange(size, device=device) // block for size in (height, width))
    return (y[:, None] * -(-width // block) + x[None, :]).flatten()


def _labels_at(logits: Tensor, size: tuple[int, int], lines: Tensor, columns: Tensor) -> Tensor:
    """Labels [n, m] of `logits_at`."""
    return highest(logits_at(logits, size, lines, columns)[None])[0]


def logits_at(logits: Tensor, size: tuple[int, int], lines: Tensor, columns: Tensor) -> Tensor:
    """Logits [K, n, m] at some lines [n] and columns [m] of what `_upsampled` yields of logits [K, h, w]."""
    down, across = (_weights(at, *sides) for at, *sides in zip((lines, columns), logits.shape[1:], size, strict=True))
    return down @ logits @ across.T


def _weights(at: Tensor, source: int, size: int) -> Tensor:
    """Bilinear weights [n, source] of places `at` [n] among `size` that `source` values are upsampled to."""
    place = ((at + 0.5) * (source / size) - 0.5).clamp(0, source - 1)
    return (1.0 - (place[:, None] - torch.arange(source, device=at.device)).abs()).clamp(min=0.0)


def _upsampled(logits: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Logits [K, h, w] upsampled (bilinear, align_corners=False) to (height, width), in bands of rows [K, n, width]."""
    (classes, source, _), (height, width) = logits.shape, size
    logits = logits.contiguous()  # torch upsamples a convolution's classes-last maps on a CPU four times slower
    if classes * height * width <= _WHOLE_ELEMENTS:
        yield F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
        return
    wide = F.interpolate(logits[None], (source, width), mode="bilinear", align_corners=False)[0]
    at = ((torch.arange(height, device=logits.device) + 0.5) * (source / height) - 0.5).clamp(0, source - 1)
    low = at.long()
    share = (at - low)[:, None]
    for rows in torch.arange(height, device=logits.device).split(max(1, _WHOLE_ELEMENTS // (classes * width))):
        upper = (low[rows] + 1).clamp(max=source - 1)
        yield torch.lerp(wide[:, low[rows]], wide[:, upper], share[rows])
