"""Rows of a large vocabulary by their highest logits: thousands fit in memory, and what else could win is looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.answers import highest

REACH = 8.0
"""In standard deviations of the noise: the difference of two draws is larger once in 10^8."""
_CHUNK_ROWS = 256
Whole = Callable[[Tensor], Tensor]
"""Rows, by index [n] int64, to all of their logits [n, K]."""


@dataclass(frozen=True)
class Candidates:
    """The highest logits of rows.

    Attributes:
        logits: [N, M] float32, falling along each row; the first is the row's answer.
        index: [N, M] int32, the class of each.
        classes: K, width of the final layer's output.
        whole: where the other logits are found; None: those left out are taken to lose.
    """

    logits: Tensor
    index: Tensor
    classes: int
    whole: Whole | None = None

    @classmethod
    def of(cls, logits: Tensor, most: int, whole: Whole | None = None) -> Candidates:
        """The `most` highest of logits [N, K] of any float dtype."""
        top, index = logits.topk(min(most, logits.shape[1]), dim=1)
        # Among equals the answer is the first, which topk does not promise.
        first = highest(logits)[:, None]
        index = torch.where(index == first, index[:, :1], index)
        index[:, :1] = first
        return cls(top.float(), index.int(), logits.shape[1], whole)

    @classmethod
    def of_features(cls, features: Tensor, final: Callable[[Tensor], Tensor], most: int) -> Candidates:
        """The `most` highest logits of rows, from their features [N, H] and the layer that makes the logits."""
        parts = [cls.of(final(part).float(), most) for part in torch.split(features, _CHUNK_ROWS)]
        return cls(
            torch.cat([part.logits for part in parts]),
            torch.cat([part.index for part in parts]),
            parts[0].classes,
            lambda rows: final(features[rows]).float(),
        )

    @classmethod
    def join(cls, parts: Sequence[Candidates]) -> Candidates:
        """All rows of several, without what was left out of them."""
        return cls(torch.cat([p.logits for p in parts]), torch.cat([p.index for p in parts]), parts[0].classes)

    def __getitem__(self, rows: Tensor) -> Candidates:
        """Some rows, by index [n] int64 or mask [N] bool."""
        whole, at = self.whole, rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        return Candidates(
            self.logits[rows], self.index[rows], self.classes, whole and (lambda some: whole(at[some.to(at.device)]))
        )

    def __len__(self) -> int:
        return len(self.logits)

    def survives(self, phi: Tensor, matrix: Tensor, scale: float) -> Tensor:
        """Whether each row's first answer is still first under noise.

        Args:
            phi: [N, D] float32 from the ladder.
            matrix: [D, K] float32, C at a position.
            scale: standard deviation of the noise there; logits 8 of it below the first are left out.

        Returns:
            [N] bool.
        """
        columns = matrix.T.contiguous()
        contending = (self.logits[:, :1] - self.logits <= REACH * scale).sum(dim=1)
        same = torch.ones(len(self), dtype=torch.bool, device=phi.device)
        for rows in torch.split(contending.argsort(), _CHUNK_ROWS):
            width = int(contending[rows[-1]])
            if width > 1:
                noise = (columns[self.index[rows, :width]] @ phi[rows, :, None])[..., 0]
                same[rows] = highest(self.logits[rows, :width] + noise) == 0
        if self.whole is not None and self.logits.shape[1] < self.classes:
            cut = (same & (contending == self.logits.shape[1])).nonzero()[:, 0]
            for rows in torch.split(cut, _CHUNK_ROWS):
                same[rows] = self._first_of_all(rows, phi[rows] @ matrix)
        return same

    def _first_of_all(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Whether the first answer of rows [n] stays first among all classes under noise [n, K]."""
        assert self.whole is not None
        own = self.logits[rows, 0] + noise.gather(1, self.index[rows, :1].long())[:, 0]
        # A class left out has at most the lowest logit kept: it loses where its noise cannot make up for that.
        others = noise.scatter(1, self.index[rows].long(), -torch.inf).amax(dim=1)
        won = torch.ones_like(own, dtype=torch.bool)
        open_ = (self.logits[rows, -1] + others >= own).nonzero()[:, 0]
        if len(open_):
            noisy = self.whole(rows[open_]).float() + noise[open_]
            won[open_] = highest(noisy) == self.index[rows[open_], 0]
        return won
