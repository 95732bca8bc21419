"""Class offsets along the noise ladder, with which every level answers each class as often as the clean model does.

Noise alone answers rare classes too often, and whatever class a smooth field favours under one secret: who holds a few
labels learns which answers are mostly wrong, and mends them (docs/decisions/0004). Offsets per class take that away
(logit adjustment, as Menon et al., ICLR 2021, do it for rare classes). They are part of the field: solved once, on
unlabelled inputs, and kept by every refit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from policies.answers import highest
from policies.calibration.candidates import Candidates
from policies.calibration.delivered import JudgedRows, Readout
from policies.field.balance import Balance
from policies.field.variance import scale_of

NEAR = 0.002
"""Share of the answers that may be of another class than they should, and of which offsets are not moved further."""
TURNS = 60
SOLVED_ON = 2**14
"""Answers, about, that offsets are solved on: more take longer and change nothing."""
RIGHT = 3.0
"""Answers of a class are to be right so many times as often as any one other class is meant by them."""
SEEN = 1e-4
"""A class is counted this much more often than it was answered, so that one never answered has a logarithm."""


class Balancer:
    """Agreement along a path, as `Delivered` measures it, with the offsets that balance each position asked for.

    Args:
        phi: [N, D] float32 from the ladder.
        logits: [N, K] clean answers.
        readout: for masks, interpolation to the client's resolution.

    Attributes:
        answers: how many are judged.

    Raises:
        ValueError: candidates, of which not every class has a logit.
    """

    def __init__(self, phi: Tensor, logits: Tensor | Candidates, readout: Readout | None = None) -> None:
        if isinstance(logits, Candidates):
            raise ValueError("class offsets are solved on all logits of a row, not on the highest")
        self._judged = JudgedRows(phi, logits, readout)
        self.answers = self._judged.answers
        self._some = slice(None, None, max(1, self.answers // SOLVED_ON))
        self._clean, self._classes = self._judged.clean[self._some], logits.shape[1]
        self._found: dict[int, Tensor] = {}

    def __call__(self, matrix: Tensor, position: int) -> float:
        """Agreement under C [D, K] of a position and the offsets that balance it."""
        if position == 0:
            return 1.0
        noisy = self._judged.noisy(matrix) / scale_of(position)
        nearest = min(self._found, key=lambda other: abs(other - position), default=None)
        start = noisy.new_zeros(self._classes) if nearest is None else self._found[nearest]
        offsets = balanced(noisy[self._some], self._clean, start)
        self._found[position] = offsets
        return float((highest(noisy + offsets) == self._judged.clean).float().mean())

    def balance(self) -> Balance:
        """The offsets of all positions that were asked for, on the CPU."""
        positions = sorted(self._found)
        return Balance(tuple(positions), torch.stack([self._found[position] for position in positions]).cpu())


def balanced(noisy: Tensor, clean: Tensor, start: Tensor) -> Tensor:
    """Offsets [K] under which answers are of each class as often as clean ones, or less where they are mostly wrong.

    Args:
        noisy: [M, K] logits in standard deviations of the noise, as the offsets are.
        clean: [M] int64, the clean answers.
        start: [K], offsets to begin with.
    """
    classes = len(start)
    share = shares(clean, classes)
    offsets, best, least = start, start, math.inf
    for turn in range(TURNS):
        answers = highest(noisy + offsets)
        table = shares(clean * classes + answers, classes * classes).reshape(classes, classes)
        right, got = table.diagonal(), table.sum(dim=0)
        other = (table - torch.diag(right)).amax(dim=0)
        wanted = share * (right / (RIGHT * other).clamp(min=SEEN)).clamp(max=1.0)
        apart = float((got - wanted).abs().sum()) / 2
        if apart < least:
            best, least = offsets, apart
        if apart < NEAR:
            break
        step = 0.5 if turn < TURNS // 2 else 0.2
        offsets = offsets + step * ((wanted + SEEN) / (got + SEEN)).log().clamp(-1.0, 1.0)
    return best - best.mean()


def shares(answers: Tensor, classes: int) -> Tensor:
    """How often each class is answered, [M] int64 to [K] float32."""
    return torch.bincount(answers, minlength=classes).float() / len(answers)
