"""Live rows: a bounded sample of the final layer's recent inputs, and what the levels deliver on it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.engines.sample import CalibrationSample
from policies.audit import Tally
from policies.layer import ModulatedLayer

_CHUNK_ELEMENTS = 2**25


@dataclass(frozen=True)
class Kept:
    """What a reservoir holds.

    Attributes:
        rows: [N, ...] as they were kept.
        groups: [N] int64, the input that each came from: a picture, a stream.
    """

    rows: Tensor
    groups: Tensor

    def thinned(self, most: int) -> Kept:
        """At most so many of the rows, evenly spread over the slots, which are in no order."""
        index = torch.linspace(0, len(self.rows) - 1, min(most, len(self.rows))).long()
        return Kept(self.rows[index], self.groups[index])


class LiveRows:
    """A reservoir of recent rows of all tenants, in memory only. Safe from any thread.

    Once it is full a new row takes the place of one drawn at random, so that what is kept reaches back some multiple of
    `capacity` rows, thinner and thinner. Rows are kept in 16 bits: `capacity` times 2 bytes times the size of a row,
    4 MB for 4,096 rows of 512 features, 50 MB for 1,536 tiles of 8 x 8 cells of 256.

    Args:
        capacity: most rows.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.taken = 0
        self._rows: Tensor | None = None
        self._groups = torch.zeros(capacity, dtype=torch.int64)
        self._chance = torch.Generator().manual_seed(0)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return min(self.taken, self.capacity)

    @property
    def inputs(self) -> int:
        """Different inputs among the rows."""
        with self._lock:
            return len(self._groups[: len(self)].unique())

    def add(self, rows: Tensor, groups: Sequence[int]) -> None:
        """Keep rows [n, ...] of one shape; those of another shape than the first ones are not kept."""
        dtype = torch.bfloat16 if rows.dtype is torch.bfloat16 else torch.float16
        new = rows.detach().to("cpu", dtype)
        with self._lock:
            if self._rows is None:
                self._rows = torch.zeros(self.capacity, *new.shape[1:], dtype=dtype)
            if new.shape[1:] != self._rows.shape[1:]:
                return
            free = max(0, min(len(new), self.capacity - self.taken))
            drawn = torch.randint(self.capacity, (len(new) - free,), generator=self._chance)
            slots = torch.cat([torch.arange(self.taken, self.taken + free), drawn])
            # One by one, since a slot may be drawn twice and must then hold one row with its own group.
            for slot, row, group in zip(slots.tolist(), new, groups, strict=True):
                self._rows[slot] = row
                self._groups[slot] = group
            self.taken += len(new)

    def kept(self) -> Kept:
        """A copy of what it holds."""
        with self._lock:
            if self._rows is None:
                return Kept(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
            return Kept(self._rows[: len(self)].clone(), self._groups[: len(self)].clone())


@torch.inference_mode()
def expected(
    sample: CalibrationSample, groups: Tensor, layer: ModulatedLayer, levels: Iterable[float]
) -> dict[float, Tally]:
    """What levels deliver on a sample, on the noise field in use and at the resolution that the client sees.

    Not the closed form: one field's level scatters around it by 0.02 (docs/decisions/0001), which is the whole margin.

    Args:
        sample: clean rows.
        groups: [M] int64, the input of each row, or where the sample has a readout of each row that it reads.
    """
    phi = layer.ladder.phi(sample.features if sample.field_features is None else sample.field_features)
    clean = _answers(sample, phi, None)
    _, number = torch.unique(groups.to(clean.device), return_inverse=True)
    tallies = {}
    for level in levels:
        agreed = _answers(sample, phi, layer.matrix(max(level, layer.floor))) == clean
        rows = torch.bincount(number).tolist()
        tallies[level] = Tally.of_groups(rows, torch.bincount(number, agreed.double()).long().tolist())
    return tallies


def _answers(sample: CalibrationSample, phi: Tensor, matrix: Tensor | None) -> Tensor:
    logits = sample.logits
    if sample.readout:
        return sample.readout(logits.float() if matrix is None else logits.float() + phi @ matrix).argmax(dim=1)
    if matrix is None:
        return logits.argmax(dim=1)
    step = max(1, _CHUNK_ELEMENTS // logits.shape[1])
    parts = zip(logits.split(step), phi.split(step), strict=True)
    return torch.cat([torch.addmm(z.float(), p, matrix).argmax(dim=1) for z, p in parts])
