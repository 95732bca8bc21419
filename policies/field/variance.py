"""The positions of the noise ladder and the variance of the noise at each."""

from __future__ import annotations

import math

POSITIONS = 2**15
"""Grid positions above 0. Neighbours differ by 0.1 % in variance: far below what a level can be measured to."""
MIN_VARIANCE = 1e-8
MAX_VARIANCE = 1e8
"""An absolute grid in squared logit units: a grid scaled to a sample would move, and redraw the noise, at a refit."""


def variance(position: int) -> float:
    """Noise variance of a grid position in squared logit units: 0 at 0, then geometric from 1e-8 to 1e8.

    Raises:
        ValueError: a position outside 0 to `POSITIONS`.
    """
    if not 0 <= position <= POSITIONS:
        raise ValueError(f"position must lie in 0..{POSITIONS}, not {position}")
    if position == 0:
        return 0.0
    return MIN_VARIANCE * math.exp(math.log(MAX_VARIANCE / MIN_VARIANCE) * (position - 1) / (POSITIONS - 1))


def scale_of(position: int) -> float:
    """Standard deviation of the noise at a position, in logit units."""
    return math.sqrt(variance(position))
