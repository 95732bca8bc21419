"""Hashes that are the same in every process: all replicas of a model must hold the same inputs out from refits."""

from __future__ import annotations

import hashlib

from torch import Tensor

_SEEN = 4096
"""About so many values of a picture tell it from others: all would cost a large one two milliseconds."""


def hashed_picture(pixels: Tensor) -> int:
    """64 bits, signed, of a picture as the model sees it, [3, h, w] float32 on the CPU."""
    return hashed(pixels.flatten()[:: max(1, pixels.numel() // _SEEN)])


def hashed(values: Tensor) -> int:
    """64 bits, signed, of all values."""
    digest = hashlib.blake2b(values.cpu().contiguous().numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
