"""Provenance: whether given answers are a keyed field's own, and which level of it. The field is a fingerprint.

Answers that this installation did not modulate have nothing to do with its key, so its field fits them no better than
decoys do, fields of other keys. What is compared is a likelihood ratio, the largest over positions of the ladder, of

  P(answer = a | field) = (1 - e) [a is the field's answer] + e q(a),  q(a): how often a is the answer of all fields,

a symmetric function of all keys, so its rank among M decoys gives p = (1 + decoys at least as high) / (M + 1), which is
exact for any inputs and answers and needs no correction for the positions looked at (Phipson and Smyth, SAGMB 2010).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from policies.calibration.calibration import Calibration
from policies.field.ladder import NoiseLadder
from policies.provenance.answers import Answers, Progress, untold
from policies.provenance.decoys import Decoys

CLAIMED = 0.001
"""Below this p-value a level is claimed."""
ERROR = 0.05
"""e: the share of answers that are not the field's. Fitting it to the answers would fit it to the decoys' as well: a
level of 0.95 is then lost, and 0.9 with a fifth of its answers drawn at random.
"""


@dataclass(frozen=True)
class Trace:
    """What answers say of where they come from.

    Attributes:
        p: how likely decoys fit them as well, were they not this field's.
        deviations: by how many standard deviations of the decoys' likelihood ratios this field's is above their mean.
        level: the level whose answers most of them are, a multiple of 0.01.
        lowest, highest: levels between which others fit about as well (McNemar's test at two standard errors).
        own: answers that are those of `level`.
        changed: answers other than the clean model's, and `explained`, how many of these are those of `level`.
        answers: how many were given.
        decoys: M.
    """

    p: float
    deviations: float
    level: float
    lowest: float
    highest: float
    own: int
    changed: int
    explained: int
    answers: int
    decoys: int

    @property
    def claimed(self) -> bool:
        """Whether `level` is claimed; else the answers show no sign of this field."""
        return self.p < CLAIMED


def trace(
    answers: Answers,
    calibration: Calibration,
    secret: bytes,
    *,
    decoys: Decoys | None = None,
    levels: Sequence[float] | None = None,
    progress: Progress = untold,
) -> Trace:
    """Say whether answers are of an installation's field, and which level's.

    Focus, sampling above temperature 0 and inputs that were changed since weaken what is found, and make up nothing.

    Args:
        calibration: of the model, on the installation's field.
        secret: the installation's noise secret.
        decoys: those of earlier answers to the same inputs; None: they are drawn.
        levels: among which the level is chosen, rising; None: every hundredth below 1 that is delivered.
        progress: called with the share of the levels that are looked at, 0 to 1.

    Raises:
        ValueError: no answers, or no level below 1 to choose from.
    """
    lowest = round(100 * calibration.floor)
    chosen = [level for level in levels or [x / 100 for x in range(lowest, 100)] if calibration.floor <= level < 1.0]
    if not len(answers) or not chosen:
        raise ValueError("there must be answers, and levels from the model's lowest to below 1")
    p, deviations, count = rank(answers, calibration, secret, decoys or Decoys(answers, calibration))
    ladder = calibration.ladder(secret, features=answers.seen.shape[1], classes=answers.classes)
    nearest = _nearest(answers, calibration, ladder, chosen, progress)
    changed = answers.given != answers.clean
    return Trace(
        p=p,
        deviations=deviations,
        level=nearest.level,
        lowest=nearest.lowest,
        highest=nearest.highest,
        own=int(nearest.same.sum()),
        changed=int(changed.sum()),
        explained=int((changed & nearest.same).sum()),
        answers=len(answers),
        decoys=count,
    )


def rank(answers: Answers, calibration: Calibration, secret: bytes, decoys: Decoys) -> tuple[float, float, int]:
    """The p-value of answers, the deviations, and the number of decoys, as `Trace` has them."""
    # Without the class offsets that it is served with, which no decoy has: each field gets its own in `Decoys`.
    bare = replace(calibration, balance=None)
    ladder = bare.ladder(secret, features=answers.seen.shape[1], classes=answers.classes)
    scores = _scores(decoys.matches(answers, ladder))
    own, others = scores[0], scores[1:]
    deviations = float((own - others.mean()) / others.std().clamp(min=1e-9))
    return (1 + int((others >= own).sum())) / (1 + len(others)), deviations, len(others)


@dataclass(frozen=True)
class _Nearest:
    level: float
    lowest: float
    highest: float
    same: Tensor


def _nearest(
    answers: Answers, calibration: Calibration, ladder: NoiseLadder, levels: Sequence[float], progress: Progress
) -> _Nearest:
    """The level whose answers most rows [N] are, with those that McNemar's test does not tell from it."""
    if answers.index is not None and len(levels) > 20:  # a position of a large vocabulary takes a second
        coarse = _nearest(answers, calibration, ladder, levels[::5], lambda share: progress(share / 2))
        middle = levels.index(coarse.level)
        levels = levels[max(0, middle - 5) : middle + 6]
    same = answers.are_of(ladder, [calibration.position(level) for level in levels], progress)
    hits = same.sum(dim=1)
    best = (hits == hits.max()).nonzero()[:, 0]
    middle = int(best[len(best) // 2])
    won, lost = (same[middle] & ~same).sum(dim=1), (same & ~same[middle]).sum(dim=1)
    alike = ((won - lost) <= 2.0 * (won + lost).sqrt()).nonzero()[:, 0]
    return _Nearest(levels[middle], levels[int(alike[0])], levels[int(alike[-1])], same[middle])


def _scores(matches: Tensor) -> Tensor:
    """The largest log likelihood ratio of each field, [M + 1] float64, from `Decoys.matches`."""
    best = torch.full((len(matches),), -math.inf, dtype=torch.float64, device=matches.device)
    for at in range(matches.shape[1]):
        same = matches[:, at].double()
        chance = same.mean(dim=0).clamp(min=1.0 / len(matches))
        gained = ((1.0 - ERROR) / chance + ERROR).log() - math.log(ERROR)
        best = torch.maximum(best, same @ gained + same.shape[1] * math.log(ERROR))
    return best
