"""Fields of other keys, which fit answers that are nobody's as well as the installation's own does.

With few classes they are fresh draws. With many they are the field itself with its classes' columns permuted: as exact,
since columns are drawn alike (Hemerik and Goeman, TEST 2018), without a draw of the size of the vocabulary for each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from policies.answers import highest
from policies.calibration.calibration import Calibration
from policies.closed_form import sigma_for
from policies.field.ladder import NoiseLadder, phi
from policies.field.variance import MAX_VARIANCE, MIN_VARIANCE, POSITIONS, variance
from policies.provenance.answers import Answers, Progress, untold

DECOYS = 1999
"""The least p-value is then 0.0005."""
MOST_ROWS, _MOST_WIDE = 1024, 512
"""Answers that are compared: those that least noise would change."""
_POSITIONS, _WIDE_POSITIONS = 64, 16
_RANGE = (0.995, 0.4)
"""Agreement, by the closed form, at the first and last position at which fields are compared."""


class Decoys:
    """Fields of other keys, on the answers that least noise would change.

    Args:
        answers: to trace; others to the same inputs may be traced against the same decoys, of few classes.
        calibration: length scale, depth and metric of the field.
        count: M.
        progress: called with the share done, 0 to 1.

    Attributes:
        rows: [n] int64, the answers that are compared.
        positions: where on the ladder they are; no key decides that either.
    """

    def __init__(
        self, answers: Answers, calibration: Calibration, count: int = DECOYS, progress: Progress = untold
    ) -> None:
        self.wide, self.count = answers.index is not None, count
        self.rows = answers.least_margins(_MOST_WIDE if self.wide else MOST_ROWS)
        self.positions = _grid(answers, _WIDE_POSITIONS if self.wide else _POSITIONS)
        self._chance = torch.Generator().manual_seed(0)
        self._progress = progress
        self._drawn = None if self.wide else self._draw(answers[self.rows], calibration)

    def matches(self, answers: Answers, ladder: NoiseLadder) -> Tensor:
        """Whether each row's answer is each field's own: [M + 1, P, n] bool, the ladder's field first."""
        compared = answers[self.rows]
        own = compared.are_of(ladder, self.positions)[None]
        if self._drawn is None:
            return torch.cat([own, self._permuted(compared, ladder)])
        return torch.cat([own, self._drawn == compared.given.cpu().to(torch.uint8)])

    def _draw(self, compared: Answers, calibration: Calibration) -> Tensor:
        """Answers [M, P, n] uint8 of fresh fields of a calibration's geometry."""
        chance, (rows, classes), depth = self._chance, compared.logits.shape, calibration.depth
        seen, logits = compared.seen.cpu() / calibration.length_scale, compared.logits.cpu()[:, :, None]
        if calibration.metric is not None:
            seen = seen @ calibration.metric.cpu()
        grid = torch.tensor([0.0, *map(variance, self.positions)], dtype=torch.float64)
        steps = grid.diff().sqrt().float()
        drawn = torch.empty(self.count, len(steps), rows, dtype=torch.uint8)
        for decoy in range(self.count):
            w = torch.randn(seen.shape[1], depth, generator=chance)
            b = torch.rand(depth, generator=chance) * (2.0 * math.pi)
            fresh = torch.randn(depth, classes * len(steps), generator=chance)
            noise = (phi(seen, w, b, ones=False) @ fresh).reshape(rows, classes, -1) * steps
            drawn[decoy] = highest(noise.cumsum_(dim=2).add_(logits)).T
            self._progress((decoy + 1) / self.count)
        return drawn

    def _permuted(self, compared: Answers, ladder: NoiseLadder) -> Tensor:
        """[M, P, n] bool of the ladder's own field with its columns permuted."""
        assert compared.index is not None
        used, place = torch.unique(compared.index, return_inverse=True)
        # Where a permutation takes the columns that are used: what it does with the others makes no difference.
        taken = [torch.randperm(compared.classes, generator=self._chance)[: len(used)].int() for _ in range(self.count)]
        seen, matches = ladder.phi(compared.seen), []
        for at, position in enumerate(self.positions):
            noise = seen @ ladder.matrix(position).to(seen.device)
            for columns in taken:
                moved = columns.to(place.device)[place].long()
                won = highest(compared.logits + noise.gather(1, moved))[:, None]
                matches.append(compared.index.gather(1, won)[:, 0] == compared.given)
            self._progress((at + 1) / len(self.positions))
        return torch.stack(matches).reshape(len(self.positions), self.count, -1).transpose(0, 1)


def _grid(answers: Answers, count: int) -> list[int]:
    """Ladder positions over the scales of noise at which the clean model's answers give way, evenly in logarithm."""
    clean = answers.clean_logits[:: max(1, len(answers) // 256)]
    some = clean.topk(min(16, clean.shape[1]), dim=1).values
    first, last = (sigma_for(some, max(level, 1.0 / some.shape[1] + 0.05)) for level in _RANGE)
    scales = torch.logspace(math.log10(first), math.log10(max(last, 1.01 * first)), count, dtype=torch.float64)
    share = (2.0 * scales.log() - math.log(MIN_VARIANCE)) / math.log(MAX_VARIANCE / MIN_VARIANCE)
    return sorted({min(POSITIONS, max(1, 1 + round(x * (POSITIONS - 1)))) for x in share.tolist()})
