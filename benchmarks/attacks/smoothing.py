"""What smooths a mask: majority filters, mean-shift segments of the picture, and a CRF-like smoother."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFTS = 5
"""Rounds of mean-shift, and of the smoother."""
_REACH, _COLOUR = 8, 24.0
"""Pixels (of half the resolution) and colour distance (of 255) within which a pixel's neighbours count."""


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels [h, w] to [K, h, w] float32."""
    return F.one_hot(labels.long(), classes).permute(2, 0, 1).float()


def window_means(maps: Tensor, size: int) -> Tensor:
    """Mean of maps [K, h, w] over size x size windows, by an integral image; at the border over what lies within."""
    (y_low, y_high), (x_low, x_high) = (_window(length, size) for length in maps.shape[1:])
    whole = F.pad(maps.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    rows = whole[:, y_high] - whole[:, y_low]
    count = (y_high - y_low)[:, None] * (x_high - x_low)
    return ((rows[:, :, x_high] - rows[:, :, x_low]) / count).float()


def majority(shares: Tensor, size: int) -> Tensor:
    """The most frequent label in each window of shares [K, h, w]: [h, w]."""
    return window_means(shares, size).argmax(dim=0)


def mean_shift_segments(picture: Tensor) -> Tensor:
    """Segments of a picture [h, w, 3] uint8 by mean-shift in place and colour: numbers [h, w] int64.

    Each pixel of half the resolution climbs to the mean of its neighbours of like colour (Comaniciu and Meer, PAMI
    2002, flat kernel); those that end in one cell of 8 pixels and 24 of colour are a segment.
    """
    colours = _halved(picture)
    _, height, width = colours.shape
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    place = torch.stack([y, x])
    original = torch.cat([place, colours])
    mode = original.clone()
    for _ in range(SHIFTS):
        at_y, at_x = mode[0].round().long(), mode[1].round().long()
        total, count = torch.zeros_like(mode), torch.zeros(height, width)
        for down in range(-_REACH, _REACH + 1, 2):
            for right in range(-_REACH, _REACH + 1, 2):
                near = original[:, (at_y + down).clamp(0, height - 1), (at_x + right).clamp(0, width - 1)]
                like = ((near[2:] - mode[2:]).square().sum(dim=0) < _COLOUR**2).float()
                total += near * like
                count += like
        mode = torch.where(count > 0, total / count.clamp(min=1), mode)
    cells = torch.cat([mode[:2] / 8, mode[2:] / _COLOUR]).round().long().flatten(1)
    segments = torch.unique(cells, dim=1, return_inverse=True)[1].reshape(1, 1, height, width)
    return F.interpolate(segments.float(), picture.shape[:2], mode="nearest")[0, 0].long()


def by_segment(shares: Tensor, segments: Tensor) -> Tensor:
    """The most frequent label of each segment [h, w], in shares [K, h, w]: [h, w]."""
    flat = segments.flatten()
    totals = torch.zeros(int(flat.max()) + 1, shares.shape[0]).index_add_(0, flat, shares.flatten(1).T)
    return totals.argmax(dim=1)[flat].reshape(segments.shape)


def crf(shares: Tensor, picture: Tensor, weight: float = 6.0) -> Tensor:
    """Mean-field rounds with one kernel in place and colour, as in Krähenbühl and Koltun (NIPS 2011), over a window.

    Args:
        shares: [K, h, w], one-hot labels or shares of votes.
        picture: [h, w, 3] uint8.
        weight: of the neighbours beside what the mask says.

    Returns:
        Labels [h, w].
    """
    colours = _halved(picture)
    _, height, width = colours.shape
    unary = F.interpolate(shares[None], (height, width), mode="area")[0] * 2.0
    steps = [(d, r) for d in range(-_REACH, _REACH + 1, 2) for r in range(-_REACH, _REACH + 1, 2) if d or r]
    kernels = []
    for down, right in steps:
        apart = (colours.roll((down, right), (1, 2)) - colours).square().sum(dim=0)
        kernels.append(torch.exp(-apart / (2 * _COLOUR**2) - (down**2 + right**2) / (2 * 5.0**2)))
    norm = torch.stack(kernels).sum(dim=0)
    belief = unary.softmax(dim=0)
    for _ in range(SHIFTS):
        message = torch.zeros_like(belief)
        for kernel, (down, right) in zip(kernels, steps, strict=True):
            message += kernel * belief.roll((down, right), (1, 2))
        belief = (unary + weight * message / norm).softmax(dim=0)
    return F.interpolate(belief[None], picture.shape[:2], mode="bilinear")[0].argmax(dim=0)


def _halved(picture: Tensor) -> Tensor:
    return F.avg_pool2d(picture.permute(2, 0, 1).float(), 2)


def _window(length: int, size: int) -> tuple[Tensor, Tensor]:
    """First and one past the last index of the window around each."""
    at = torch.arange(length)
    return (at - size // 2).clamp(min=0), (at + size // 2 + 1).clamp(max=length)
