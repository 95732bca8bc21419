"""What a model's weights take in memory, told from its files' headers before they are loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch
from safetensors import safe_open

GIB = 2**30
SPARE = 1.5
"""Times the weights that a card has free, from where on they can lie there a second time, beside a cache."""
HEADROOM = 0.9
"""Of what is free; the rest is for a step's own tensors and what the allocator cannot use."""


def weight_bytes(paths: Iterable[Path], dtype: torch.dtype) -> int:
    """Bytes of weights in memory, as `dtype` where they are of a floating type and as they lie where they are packed.

    Args:
        paths: .safetensors, .gguf (whole or in parts), or torch files, which are counted as large as they are.
    """
    return sum(_bytes(path, dtype) for path in paths)


def _bytes(path: Path, dtype: torch.dtype) -> int:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            parts = [file.get_slice(name) for name in file.keys()]
            return sum(math.prod(part.get_shape()) * _size(part.get_dtype(), dtype) for part in parts)
    if path.suffix == ".gguf":
        return _gguf_elements(path) * dtype.itemsize
    return path.stat().st_size


def _gguf_elements(path: Path) -> int:
    # Imports for a while, which pictures need not pay.
    from gguf import GGUFReader
    from transformers.integrations.gguf import GgufHeader

    try:
        return sum(math.prod(tensor.shape) for tensor in GgufHeader.from_file(str(path)).tensors)
    except ValueError:  # a part, or types that it does not know: the slower reader does
        return sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)


def _size(stored: str, dtype: torch.dtype) -> int:
    """Bytes of one number, by safetensors' name of its type."""
    if stored in ("F64", "F32", "F16", "BF16"):
        return dtype.itemsize
    return max(1, int("".join(filter(str.isdigit, stored.split("_")[0])) or 8) // 8)


def cache_share(free: int, total: int, own: int, share: float = 0.0) -> float:
    """The part of a card's free memory that a model's cache and a step's tensors may take.

    Args:
        free: bytes that nobody has.
        total: bytes of the card.
        own: bytes that this process has already, for its weights.
        share: of the card, which is this process's, with as much left for whoever calibrates; 0: all of it, and room
            for the weights a second time is left where there is some.
    """
    if free <= 0:
        return 0.0
    beside = own if free >= SPARE * own else 0
    left = min(free, int(share * total) - own) if share else free - beside
    return max(0.0, HEADROOM * left / free)


def available_bytes(device: torch.device) -> int:
    """What is free of a device's memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else int(psutil.virtual_memory().available)


def free_share(device: torch.device, share: float = 0.0) -> float | None:
    """`cache_share` of a card as it is now; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return cache_share(free, total, torch.cuda.memory_reserved(device), share)


def gibibytes(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / GIB:.1f} GiB"
