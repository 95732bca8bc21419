"""The squares of a map that share their noise."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def block_means(features: Tensor, block: int) -> Tensor:
    """Mean over each block x block square of a map [B, H, h, w]; smaller squares at the right and lower edge."""
    return F.avg_pool2d(features, block, ceil_mode=True) if block > 1 else features


def spread(squares: Tensor, block: int, height: int, width: int) -> Tensor:
    """[B, C, ...] of squares, as `block_means` lays them out, to each of their places: [B, C, height, width]."""
    if block == 1:
        return squares
    return F.interpolate(squares, scale_factor=float(block))[..., :height, :width]
