"""Live rows: a bounded sample of the final layer's recent inputs, and what the levels deliver on it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.engines.sample import CalibrationSample
from policies.audit import Tally
from policies.delivered import JudgedRows, scale_of
from policies.layer import ModulatedLayer

FLUSH_ROWS = 256
"""Rows that wait on their device before they are copied off it together."""
LEAST_AT = 200
"""Rows given at one position that are judged apart from those of other positions."""


@dataclass(frozen=True)
class Kept:
    """What a reservoir holds.

    Attributes:
        rows: [N, ...] as they were kept.
        groups: [N] int64, the input that each came from: a picture, a stream.
        at: [N] int64, for text the ladder position at which the answer that a row is a step of was being given.
    """

    rows: Tensor
    groups: Tensor
    at: Tensor

    def thinned(self, most: int) -> Kept:
        """At most so many of the rows, evenly spread over the slots, which are in no order."""
        index = torch.linspace(0, len(self.rows) - 1, min(most, len(self.rows))).long()
        return Kept(self.rows[index], self.groups[index], self.at[index])

    def gathered(self) -> Tensor:
        """`at` with the positions of fewer than 200 rows replaced by the nearest of more; by the lowest without any."""
        positions, counts = self.at.unique(return_counts=True)
        many = positions[counts >= LEAST_AT]
        if not len(many):
            return torch.full_like(self.at, int(positions[0]))
        return many[(self.at[:, None] - many).abs().argmin(dim=1)]


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
        self._taken = 0
        self._rows: Tensor | None = None
        self._labels = torch.zeros(capacity, 2, dtype=torch.int64)
        self._waiting: list[tuple[Tensor, list[tuple[int, int]]]] = []
        self._chance = torch.Generator().manual_seed(0)
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """Rows kept since the start, those included that gave way to others."""
        with self._lock:
            self._flush()
            return self._taken

    def __len__(self) -> int:
        return min(self.taken, self.capacity)

    @property
    def inputs(self) -> int:
        """Different inputs among the rows."""
        with self._lock:
            self._flush()
            return len(self._labels[: min(self._taken, self.capacity), 0].unique())

    def add(self, rows: Tensor, groups: Sequence[int], at: Sequence[int] | None = None) -> None:
        """Keep rows [n, ...] of one shape; those of another shape than the first ones are not kept."""
        dtype = torch.bfloat16 if rows.dtype is torch.bfloat16 else torch.float16
        labels = list(zip(groups, at or [0] * len(groups), strict=True))
        with self._lock:
            self._waiting.append((rows.detach().to(dtype, copy=True), labels))
            if sum(len(waiting) for waiting, _ in self._waiting) >= FLUSH_ROWS:
                self._flush()

    def kept(self) -> Kept:
        """A copy of what it holds."""
        with self._lock:
            self._flush()
            size = min(self._taken, self.capacity)
            rows = torch.zeros(0) if self._rows is None else self._rows[:size].clone()
            return Kept(rows, *self._labels[:size].T.clone())

    @torch.inference_mode(False)  # or the first forward would decide that nothing outside of one may write here
    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for rows, labels in waiting:
            if self._rows is None:
                self._rows = torch.zeros(self.capacity, *rows.shape[1:], dtype=rows.dtype)
            if rows.shape[1:] != self._rows.shape[1:]:
                continue
            free = max(0, min(len(rows), self.capacity - self._taken))
            drawn = torch.randint(self.capacity, (len(rows) - free,), generator=self._chance).tolist()
            # A slot that is drawn twice holds the later row.
            slots = {slot: row for row, slot in enumerate([*range(self._taken, self._taken + free), *drawn])}
            to, chosen = list(slots), list(slots.values())
            self._rows[to] = rows[chosen].cpu()
            self._labels[to] = torch.tensor(labels)[chosen]
            self._taken += len(rows)


@torch.inference_mode()
def expected(
    sample: CalibrationSample, groups: Tensor, layer: ModulatedLayer, levels: Iterable[float]
) -> dict[float, Tally]:
    """What levels deliver on a sample, on the noise field in use and at the resolution that the client sees.

    Not the closed form: one field's level scatters around it by 0.02 (docs/decisions/0001), which is the whole margin.
    A level of text is judged on the rows of answers that were given nearest to it.

    Args:
        sample: clean rows.
        groups: [M] int64, the input of each row, or where the sample has a readout of each row that it reads.
    """
    phi = layer.ladder.phi(sample.features if sample.field_features is None else sample.field_features)
    near = torch.zeros(1, dtype=torch.int64) if sample.at is None else sample.at.unique().cpu()
    judged: dict[int, tuple[JudgedRows, Tensor]] = {}
    tallies = {}
    for level in levels:
        position = layer.calibration.position(max(level, layer.floor))
        place = int(near[(near - position).abs().argmin()])
        if place not in judged:
            judged[place] = _judged(sample, phi, groups, place)
        rows, number = judged[place]
        agreed = rows.same(layer.matrix_at(position), scale_of(position)).cpu()
        counts = torch.bincount(number, agreed.double()).long()
        tallies[level] = Tally.of_groups(torch.bincount(number).tolist(), counts.tolist())
    return tallies


def _judged(sample: CalibrationSample, phi: Tensor, groups: Tensor, place: int) -> tuple[JudgedRows, Tensor]:
    """The rows of answers given at a place, all where it does not matter, and the number of each one's group."""
    if sample.at is None:
        rows = JudgedRows(phi, sample.logits, sample.readout)
    else:
        chosen = sample.at == place
        rows, groups = JudgedRows(phi[chosen], sample.logits[chosen], sample.readout), groups[chosen.cpu()]
    return rows, groups.unique(return_inverse=True)[1]
