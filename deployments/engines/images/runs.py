"""COCO's run-length encoding of masks, as pycocotools reads it (`maskApi.c`, rleEncode and rleToString)."""

from __future__ import annotations

import numpy as np

_BITS, _MORE, _FIRST = 5, 0x20, 48
_DIGITS = 8
"""Of five bits each: more pixels than a picture may have."""


def run_lengths(mask: np.ndarray) -> str:
    """`counts` of a boolean mask [height, width]: runs down its columns, of false first."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]]))
    if flat[0]:
        runs = np.concatenate([[0], runs])
    left = runs.copy()
    left[3:] -= runs[1:-2]  # each but the first three as what it is longer than the one before the last
    digits = np.zeros((len(left), _DIGITS), np.uint8)
    used = np.zeros((len(left), _DIGITS), bool)
    going = np.ones(len(left), bool)
    for at in range(_DIGITS):
        digit = left & (2**_BITS - 1)
        left >>= _BITS
        more = left != np.where(digit & (_MORE >> 1), -1, 0)
        digits[:, at], used[:, at] = digit + _MORE * more + _FIRST, going
        going &= more
    return digits[used].tobytes().decode()
