"""Answers that somebody gave, beside the clean logits and what the noise field sees of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from policies.answers import highest
from policies.calibration.candidates import Candidates
from policies.field.ladder import NoiseLadder

WIDE = 64
"""More classes than these are looked at by their highest logits alone."""
_CHUNK_ROWS = 2048
Progress = Callable[[float], None]


def untold(_share: float) -> None:
    """Progress that nobody waits for."""


@dataclass(frozen=True)
class Answers:
    """Inputs of a final layer and the answers that somebody gave to them, from `Answers.of`.

    Attributes:
        seen: [N, H] float32, what the field sees of each row: features, or for masks the mean of the row's square.
        logits: [N, M] float32 clean logits: of all classes in their order, or of the highest falling, then the given.
        index: [N, M] int64, the class of each; None: all classes in their order.
        given: [N] int64, the class that was given as the answer.
        classes: K.
    """

    seen: Tensor
    logits: Tensor
    index: Tensor | None
    given: Tensor
    classes: int

    @classmethod
    def of(cls, seen: Tensor, logits: Tensor, given: Tensor) -> Answers:
        """From clean logits [N, K] and given classes [N] int64; of a large vocabulary some hundred rows at a time.

        Raises:
            ValueError: shapes that do not match, or a given class that there is not.
        """
        if not len(seen) == len(logits) == len(given):
            raise ValueError(f"{len(seen)} inputs, {len(logits)} rows of logits, but {len(given)} answers")
        classes = logits.shape[1]
        if len(given) and not 0 <= int(given.min()) <= int(given.max()) < classes:
            raise ValueError(f"answers must be classes 0 to {classes - 1}")
        if classes <= WIDE:
            return cls(seen.float(), logits.float(), None, given, classes)
        top = Candidates.of(logits, WIDE)
        own = logits.gather(1, given[:, None]).float()
        index = torch.cat([top.index.long(), given[:, None]], dim=1)
        return cls(seen.float(), torch.cat([top.logits, own], dim=1), index, given, classes)

    @classmethod
    def join(cls, parts: Sequence[Answers]) -> Answers:
        """All rows of several, of one final layer."""
        first = parts[0]
        index = None if first.index is None else torch.cat([p.index for p in parts if p.index is not None])
        seen, logits, given = (torch.cat([getattr(p, name) for p in parts]) for name in ("seen", "logits", "given"))
        return cls(seen, logits, index, given, first.classes)

    def to(self, device: torch.device | str) -> Answers:
        """The same on a device."""
        index = None if self.index is None else self.index.to(device)
        seen, logits, given = (value.to(device) for value in (self.seen, self.logits, self.given))
        return replace(self, seen=seen, logits=logits, index=index, given=given)

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, rows: Tensor | slice) -> Answers:
        index = None if self.index is None else self.index[rows]
        return replace(self, seen=self.seen[rows], logits=self.logits[rows], index=index, given=self.given[rows])

    @property
    def clean(self) -> Tensor:
        """The clean answers, [N] int64."""
        return highest(self.logits) if self.index is None else self.index[:, 0]

    @property
    def clean_logits(self) -> Tensor:
        """The logits [N, M] without the column of the given answer, which may stand there a second time."""
        return self.logits if self.index is None else self.logits[:, :-1]

    def least_margins(self, most: int) -> Tensor:
        """Rows [n] int64, in order, whose two highest clean logits lie nearest. No key decides which."""
        top = self.clean_logits.topk(2, dim=1).values
        return (top[:, 0] - top[:, 1]).argsort(stable=True)[:most].sort().values

    def are_of(self, ladder: NoiseLadder, positions: Sequence[int], progress: Progress = untold) -> Tensor:
        """Whether each answer is a field's own at each position: [P, N] bool."""
        seen, found = ladder.phi(self.seen), []
        every = torch.arange(len(self), device=seen.device)
        for at, position in enumerate(positions):
            matrix = ladder.matrix(position).to(seen.device)
            parts = [self._winners(seen, matrix, rows) for rows in torch.split(every, _CHUNK_ROWS)]
            found.append(torch.cat(parts) == self.given)
            progress((at + 1) / len(positions))
        return torch.stack(found)

    def _winners(self, seen: Tensor, matrix: Tensor, rows: Tensor) -> Tensor:
        if self.index is None:
            return highest(torch.addmm(self.logits[rows], seen[rows], matrix))
        columns = matrix.T.contiguous()
        noise = (columns[self.index[rows]] @ seen[rows][:, :, None])[..., 0]
        return self.index[rows].gather(1, highest(self.logits[rows] + noise)[:, None])[:, 0]
