"""How levels of labels, masks and text are solved by default: values, and why, are in docs/decisions/0004 and 0006."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scheme:
    """How one kind of model is calibrated.

    Attributes:
        depth: D of the noise field.
        length_scale: ell, in median distances between features of one class.
        tolerance: agreement between neighbouring points of the curve. Text's is smooth: straight lines between its
            points are off by less than 0.001.
        directions: columns of the field's metric; 0: it has none, distances between features count as they are.
        duplicated: inputs whose near-duplicates the metric is fitted on.
        contention: how many of the highest logits contend for focus.
        block: side of the squares of a map that share their noise, in logits.
        balance: whether a level answers each class as often as the clean model.
    """

    depth: int
    length_scale: float
    tolerance: float
    directions: int = 0
    duplicated: int = 0
    contention: int = 2
    block: int = 1
    balance: bool = False


LABELS = Scheme(depth=512, length_scale=1.6, tolerance=0.004)
MASKS = Scheme(depth=128, length_scale=0.9, tolerance=0.005, directions=32, duplicated=64, block=4, balance=True)
TEXT = Scheme(depth=32, length_scale=0.8, tolerance=0.03, contention=50)
