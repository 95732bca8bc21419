"""What a batch gives for each picture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ItemLogits:
    """One picture's logits, [K] or [K, h, w]: to answer from, and for the audit alone, clean and after utility.

    The model's own answer is `logits`; the other two are of the final layer, before the model scales or caps them.
    `lines` is the height of the final layer's map, 1 where it makes none.
    """

    logits: Tensor
    clean: Tensor
    utility: Tensor
    lines: int = 1
