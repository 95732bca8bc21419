"""Near-duplicates of a batch of pictures as tensors: what could be sent in their place, in the hope of other noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COPIES = 8
"""How often a picture is sent again to fit the field's metric on; the first is the picture itself."""
MOST_STEPS = 2
"""Of a shift."""
_JITTER = (0.0, 0.016, 0.03, 0.06, 0.12)
"""Largest change of a value, in standard deviations of the pictures: up to 8/255 of what a pixel can be."""


def duplicate(pictures: Tensor, number: int, step: int) -> Tensor:
    """Pictures [B, C, h, w] sent in the way of a number: mirrored, shifted, jittered.

    Args:
        number: 0 is the pictures themselves.
        step: of a shift, in pixels; what it uncovers is mirrored.
    """
    mirrored, right, down, jitter, generator = _way(number)
    out = pictures.flip(-1) if mirrored else pictures
    margin, (height, width) = MOST_STEPS * step, pictures.shape[-2:]
    wide = F.pad(out, (margin,) * 4, mode="reflect")
    top, left = margin + down * step, margin + right * step
    out = wide[..., top : top + height, left : left + width]
    if not jitter:
        return out
    noise = torch.rand(out.shape, generator=generator).mul_(2).sub_(1).to(out.device, out.dtype)
    return out + noise * (jitter * pictures.std())


def undo(answer: Tensor, number: int) -> Tensor:
    """Maps [..., h, w] answered to duplicates, where a step is one cell, in the pictures' own frame.

    Cells within two of the edge are not the pictures'.
    """
    mirrored, right, down, *_ = _way(number)
    straight = answer.roll((down, right), (-2, -1))
    return straight.flip(-1) if mirrored else straight


def can_shift(pictures: Tensor, step: int) -> bool:
    """Whether pictures are large enough to be shifted."""
    return min(pictures.shape[-2:]) > MOST_STEPS * step


def _way(number: int) -> tuple[bool, int, int, float, torch.Generator]:
    """The way of a number, the same everywhere."""
    generator = torch.Generator().manual_seed(number)
    if number == 0:
        return False, 0, 0, 0.0, generator
    right, down = (torch.randint(-MOST_STEPS, MOST_STEPS + 1, (2,), generator=generator)).tolist()
    mirrored, jitter = (torch.randint(n, (1,), generator=generator).item() for n in (2, len(_JITTER)))
    return bool(mirrored), right, down, _JITTER[int(jitter)], generator
