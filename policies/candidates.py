"""Rows of a large vocabulary by their highest logits alone: no other can win, and thousands of rows fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

REACH = 8.0
"""In standard deviations of the noise: the difference of two draws is larger once in 10^8."""
_CHUNK_ROWS = 256


@dataclass(frozen=True)
class Candidates:
    """The highest logits of rows.

    Attributes:
        logits: [N, M] float32, falling along each row.
        index: [N, M] int32, the class of each.
        classes: K, width of the final layer's output.
    """

    logits: Tensor
    index: Tensor
    classes: int

    @classmethod
    def of(cls, logits: Tensor, most: int) -> Candidates:
        """The `most` highest of logits [N, K] of any float dtype."""
        top, index = logits.topk(min(most, logits.shape[1]), dim=1)
        return cls(top.float(), index.int(), logits.shape[1])

    @classmethod
    def join(cls, parts: Sequence[Candidates]) -> Candidates:
        """All rows of several."""
        return cls(torch.cat([p.logits for p in parts]), torch.cat([p.index for p in parts]), parts[0].classes)

    def __getitem__(self, rows: Tensor) -> Candidates:
        """Some rows, by index [n] int64 or mask [N] bool."""
        return Candidates(self.logits[rows], self.index[rows], self.classes)

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
                same[rows] = (self.logits[rows, :width] + noise).argmax(dim=1) == 0
        return same
