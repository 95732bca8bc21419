"""Which noise field a final layer has, unless its owner says otherwise: a digest of the signs of its weights."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

_AT_ONCE = 2**22
"""Weights looked at together: a vocabulary of 128,000 by 4,096 then takes 4 MB at a time, not 524."""


def field_digest(final: nn.Module) -> str:
    """16 hex digits, the same for every copy of one final layer whatever its float type, labels, id and backbone.

    SHA-256 over shape and sign bits of weight and bias: rounding to a shorter float changes values, and never a sign.
    A quantised copy (GGUF, int8), whose small weights may turn to zero, or a layer that was trained on has another.

    Args:
        final: `nn.Linear` [K, H], or a 1x1 `nn.Conv2d` [K, H, 1, 1], which counts as the same.
    """
    digest = hashlib.sha256()
    for name in ("weight", "bias"):
        values: Tensor | None = getattr(final, name)
        if values is not None:
            digest.update(f"{name}:{len(values)}x{values.numel() // len(values)}".encode())
            for some in torch.split(values.detach().reshape(-1), _AT_ONCE):
                digest.update(np.packbits(torch.signbit(some).cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]
