"""Pictures to calibrate on, the features that are made of them, and masks read where the client sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deployments.engines.calibrated import Progress
from deployments.engines.errors import LoadError
from deployments.engines.images.decoding import decode_image
from policies.errors import ServiceError

MIN_IMAGES = 100
_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp"}
_READOUT_ELEMENTS = 2**19


class UpsamplingReadout:
    """Logits of tiles read where the client sees them: bilinearly upsampled, align_corners=False, at random pixels.

    A fit evaluates it hundreds of times and neighbouring pixels say nearly the same, so some pixels stand for all.
    They come from the middle of a tile, one block high and wide, so that borders between blocks, where interpolation
    averages two draws of noise, weigh what they do in a whole picture.

    Args:
        tiles: number of tiles; rows come tile by tile, then line by line.
        height: of a tile, in logits, more than a block.
        width: of a tile, in logits, more than a block.
        scale: output pixels per logit along each side, at least 1.
        block: side of the squares that share their noise, in logits.
        points: pixels read of each tile.

    Attributes:
        y, x: [tiles, points] int64, the pixels read, counted in the upsampled tile.
    """

    def __init__(
        self, tiles: int, height: int, width: int, scale: int, block: int, points: int, device: torch.device
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.y, self.x = (_middle(size * scale, block * scale, (tiles, points), generator) for size in (height, width))
        (y, below), (x, right) = (_source(at, scale) for at in (self.y, self.x))
        first = torch.arange(tiles)[:, None] * (height * width)
        rows, weights = [], []
        for i, line in enumerate((y, (y + 1).clamp(max=height - 1))):
            for j, column in enumerate((x, (x + 1).clamp(max=width - 1))):
                rows.append((first + line * width + column).flatten())
                weights.append(((below if i else 1 - below) * (right if j else 1 - right)).flatten())
        self._rows, self._weights = torch.stack(rows, dim=1).to(device), torch.stack(weights, dim=1).to(device)

    def __call__(self, logits: Tensor) -> Tensor:
        """[tiles * height * width, K] to [tiles * points, K]."""
        return F.embedding_bag(self._rows, logits, per_sample_weights=self._weights, mode="sum")


def readout_points(tiles: int, classes: int) -> int:
    """Pixels to read of each tile, so that a readout stays near 2^19 elements."""
    return max(16, _READOUT_ELEMENTS // (tiles * classes))


def write_features(path: Path, features: Tensor, metric: Tensor | None, metadata: dict[str, str]) -> None:
    """Store features [N, H] or [tiles, H, h, w] as float16, and a metric [H, m]."""
    stored = {"features": features.to(torch.float16).contiguous()}
    if metric is not None:
        stored["metric"] = metric.contiguous()
    save_file(stored, path, metadata=metadata)


def read_features(path: Path) -> tuple[Tensor, Tensor | None, dict[str, str]]:
    """The features, float32, the metric if there is one, and the metadata that `write_features` stored.

    Raises:
        LoadError: not such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metric = file.get_tensor("metric") if "metric" in file.keys() else None
            return file.get_tensor("features").float(), metric, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise LoadError(f"{path} is not a calibration sample of features: {error}") from error


def picture_files(folder: Path, most: int) -> list[Path]:
    """The image files below a folder, at any depth and in name order, evenly thinned to at most `most`.

    Raises:
        LoadError: fewer than 100.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if len(files) < MIN_IMAGES:
        raise LoadError(f"calibration needs at least {MIN_IMAGES} images; {folder} holds {len(files)}")
    return files if len(files) <= most else [files[i * len(files) // most] for i in range(most)]


def told(files: Sequence[Path], progress: Progress) -> Iterator[Path]:
    """Files one by one, `progress` being told how far they are."""
    for number, file in enumerate(files):
        progress("reading images", number / len(files))
        yield file


def read_picture(path: Path) -> Image.Image:
    """An RGB picture.

    Raises:
        LoadError: it cannot be read; the message names it.
    """
    try:
        return decode_image(path.read_bytes())
    except (ServiceError, OSError) as error:
        reason = error.message if isinstance(error, ServiceError) else error.strerror
        raise LoadError(f"calibration image {path}: {reason}") from error


def _middle(size: int, window: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random places in the middle `window` of `size`."""
    low = max(0, min(size, 2 * window) - window) // 2
    return torch.randint(low, min(size, low + window), shape, generator=generator)


def _source(at: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Output pixels to the source index before each, and the weight of the one after it."""
    position = ((at + 0.5) / scale - 0.5).clamp(min=0.0)
    low = position.floor().long()
    return low, position - low
