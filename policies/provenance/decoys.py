"""Fields of other keys, which fit answers that are nobody's as well as the installation's own does.

With few classes they are fresh draws. With many they are the field itself with its classes' columns permuted: as exact,
since columns are drawn alike (Hemerik and Goeman, TEST 2018), without a draw of the size of the vocabulary for each.

A field with class offsets was given them for its own key, on clean answers, and would fit any answers better than
fields without. So every field compared gets its own, this one too, by the same few steps on the same rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from policies.answers import highest
from policies.calibration.balancer import RIGHT, SEEN
from policies.calibration.calibration import Calibration
from policies.closed_form import sigma_for
from policies.field.ladder import NoiseLadder, phi
from policies.field.variance import MAX_VARIANCE, MIN_VARIANCE, POSITIONS, scale_of, variance
from policies.provenance.answers import Answers, Progress, untold

DECOYS = 1999
"""The least p-value is then 0.0005."""
MOST_ROWS, _MOST_WIDE = 1024, 512
"""Answers that are compared: those that least noise would change."""
_POSITIONS, _WIDE_POSITIONS, _BALANCED_POSITIONS = 64, 16, 24
_TURNS = 16
"""Steps in which a field's class offsets are found; those that are served take up to 60."""
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
        self._balanced = calibration.balance is not None
        if self._balanced:  # offsets are of all answers, not of those that least noise would change
            self.rows = torch.arange(0, len(answers), max(1, -(-len(answers) // MOST_ROWS)))
        else:
            self.rows = answers.least_margins(_MOST_WIDE if self.wide else MOST_ROWS)
        count_of = _WIDE_POSITIONS if self.wide else _BALANCED_POSITIONS if self._balanced else _POSITIONS
        self.positions = _grid(answers, count_of)
        self._chance = torch.Generator().manual_seed(0)
        self._progress = progress
        self._clean = answers.clean[self.rows].cpu()
        self._drawn = None if self.wide else self._draw(answers[self.rows], calibration)

    def matches(self, answers: Answers, ladder: NoiseLadder) -> Tensor:
        """Whether each row's answer is each field's own: [M + 1, P, n] bool, the ladder's field first."""
        compared = answers[self.rows]
        if self._drawn is None:
            return torch.cat([compared.are_of(ladder, self.positions)[None], self._permuted(compared, ladder)])
        matrices = torch.stack([ladder.matrix(position) for position in self.positions], dim=2)
        noise = torch.einsum("nd,dkp->nkp", ladder.phi(compared.seen.cpu()), matrices)
        own = self._settled(noise.add_(compared.logits.cpu()[:, :, None]))
        return torch.cat([own[None], self._drawn]) == compared.given.cpu().to(torch.uint8)

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
            drawn[decoy] = self._settled(noise.cumsum_(dim=2).add_(logits))
            self._progress((decoy + 1) / self.count)
        return drawn

    def _settled(self, noisy: Tensor) -> Tensor:
        """Noisy logits [n, K, P] to answers [P, n] uint8, with class offsets where the field has them."""
        if self._balanced:
            scales = torch.tensor([scale_of(position) for position in self.positions])
            noisy = noisy + scales * _offsets(noisy / scales, self._clean)
        return highest(noisy).T.to(torch.uint8)

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


def _offsets(noisy: Tensor, clean: Tensor) -> Tensor:
    """Class offsets [K, P] of noisy logits [n, K, P] in standard deviations, as `balanced` finds them one by one.

    Args:
        clean: [n] int64, the clean answers.
    """
    _, classes, positions = noisy.shape
    place = classes * (classes * torch.arange(positions) + clean[:, None])
    share = torch.bincount(clean, minlength=classes) / len(clean)
    offsets = noisy.new_zeros(classes, positions)
    for turn in range(_TURNS):
        seen = torch.bincount((place + highest(noisy + offsets)).flatten(), minlength=positions * classes**2)
        table = seen.reshape(positions, classes, classes).float() / len(clean)
        right, got = table.diagonal(dim1=1, dim2=2), table.sum(dim=1)
        other = (table - torch.diag_embed(right)).amax(dim=1)
        wanted = share * (right / (RIGHT * other).clamp(min=SEEN)).clamp(max=1.0)
        step = 0.5 if turn < _TURNS // 2 else 0.2
        offsets += step * ((wanted + SEEN) / (got + SEEN)).log().clamp(-1.0, 1.0).T
    return offsets - offsets.mean(dim=0)


def _grid(answers: Answers, count: int) -> list[int]:
    """Ladder positions over the scales of noise at which the clean model's answers give way, evenly in logarithm."""
    clean = answers.clean_logits[:: max(1, len(answers) // 256)]
    some = clean.topk(min(16, clean.shape[1]), dim=1).values
    first, last = (sigma_for(some, max(level, 1.0 / some.shape[1] + 0.05)) for level in _RANGE)
    scales = torch.logspace(math.log10(first), math.log10(max(last, 1.01 * first)), count, dtype=torch.float64)
    share = (2.0 * scales.log() - math.log(MIN_VARIANCE)) / math.log(MAX_VARIANCE / MIN_VARIANCE)
    return sorted({min(POSITIONS, max(1, 1 + round(x * (POSITIONS - 1)))) for x in share.tolist()})
