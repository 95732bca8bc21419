"""Class offsets along the noise ladder: the mean of a field that would else answer rare classes too often."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.field.variance import scale_of


@dataclass(frozen=True, eq=False)
class Balance:
    """Offsets of K classes at some positions of a ladder.

    Attributes:
        positions: n rising ladder positions.
        offsets: [n, K] float32, in standard deviations of the noise at the position.
    """

    positions: tuple[int, ...]
    offsets: Tensor

    def at(self, position: int) -> Tensor:
        """Offsets [K] in logit units: between two positions linear in the position, beyond the last ones as there."""
        above = bisect_left(self.positions, position)
        if above == 0 or above == len(self.positions):
            return self.offsets[min(above, len(self.positions) - 1)] * scale_of(position)
        low, high = self.positions[above - 1], self.positions[above]
        between = torch.lerp(self.offsets[above - 1], self.offsets[above], (position - low) / (high - low))
        return between * scale_of(position)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Balance):
            return NotImplemented
        return self.positions == other.positions and torch.equal(self.offsets, other.offsets)
