"""Live rows: a bounded sample of the final layer's recent inputs, and what the levels deliver on it."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from policies.audit import Tally
from policies.calibration.delivered import JudgedRows
from policies.calibration.sample import CalibrationSample
from policies.field.variance import scale_of
from policies.head.head import Head
from policies.head.slots import Setting

FLUSH_ROWS = 256
"""Rows that wait on their device before they are copied off it together."""
LEAST_AT = 200
"""Rows given at one position that are judged apart from those of other positions."""


@dataclass(frozen=True)
class Kept:
    """What a reservoir holds.

    Attributes:
        rows: [N, ...] as they were kept.
        groups: [N] int64, a hash of the input that each came from: a picture, a prompt.
        at: [N] int64, for text the ladder position at which the answer that a row is a step of was being given.
        scale: for masks, output pixels per logit along a side.
    """

    rows: Tensor
    groups: Tensor
    at: Tensor
    scale: int = 1

    def solved(self) -> Kept:
        """About half of the inputs, with all their rows: what a refit is solved on."""
        return self._of(self.groups % 2 == 0)

    def held_out(self) -> Kept:
        """The other inputs, which no refit is solved on, ever: what levels are judged on, before a refit and after."""
        return self._of(self.groups % 2 == 1)

    def _of(self, chosen: Tensor) -> Kept:
        return replace(self, rows=self.rows[chosen], groups=self.groups[chosen], at=self.at[chosen])

    def thinned(self, most: int) -> Kept:
        """At most so many of the rows, evenly spread over the slots, which are in no order."""
        return self._of(torch.linspace(0, len(self.rows) - 1, min(most, len(self.rows))).long())

    def gathered(self) -> Tensor:
        """`at` with the positions of fewer than 200 rows replaced by the nearest of more; by the lowest without any."""
        positions, counts = self.at.unique(return_counts=True)
        many = positions[counts >= LEAST_AT]
        if not len(many):
            return torch.full_like(self.at, int(positions[0]))
        nearest: Tensor = many[(self.at[:, None] - many).abs().argmin(dim=1)]
        return nearest


class LiveRows:
    """A reservoir of recent rows of all tenants, in memory only. Safe from any thread.

    A row that came before is not kept again: who repeats an input would otherwise decide what the levels are judged on.
    Once it is full a new row takes the place of one drawn at random, so that what is kept reaches back some multiple of
    `capacity` rows, thinner and thinner. Rows are kept in 16 bits: `capacity` times 2 bytes times the size of a row,
    8 MB for 8,192 rows of 512 features, 50 MB for 1,536 tiles of 8 x 8 cells of 256.

    Args:
        capacity: most rows.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._taken = 0
        # As numpy: a tensor that is made in inference mode could not be written to outside of it.
        self._rows: list[np.ndarray] = []
        self._dtype = torch.float16
        self._labels = np.zeros((capacity, 2), dtype=np.int64)
        self._waiting: list[tuple[Tensor, list[tuple[int, int]], torch.cuda.Event | None]] = []
        self._seen: set[bytes] = set()
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
            return len(np.unique(self._labels[self._usual(), 0]))

    def add(self, rows: Tensor, groups: Sequence[int], at: Sequence[int] | None = None) -> None:
        """Keep rows [n, ...], alike in shape and dtype, with the hash of each one's input and its position.

        Raises:
            ValueError: another number of groups or positions than of rows.
        """
        dtype = torch.bfloat16 if rows.dtype is torch.bfloat16 else torch.float16
        labels = list(zip(groups, at or [0] * len(groups), strict=True))
        with self._lock:
            waiting = rows.detach().to(dtype, copy=True)
            # Whoever reads them may be on another stream than the forward that writes them.
            written = torch.cuda.current_stream(rows.device).record_event() if rows.is_cuda else None
            self._waiting.append((waiting, labels, written))
            if sum(len(waiting) for waiting, *_ in self._waiting) >= FLUSH_ROWS:
                self._flush()

    def kept(self) -> Kept:
        """A copy of what it holds, of the shape that most of its rows have: maps smaller than a tile give others."""
        with self._lock:
            self._flush()
            usual = self._usual()
            rows = torch.from_numpy(np.stack([self._rows[slot] for slot in usual])) if usual else torch.zeros(0)
            labels = torch.from_numpy(self._labels[usual])
            return Kept(rows.view(self._dtype) if usual else rows, *labels.T)

    def _usual(self) -> list[int]:
        """Slots of the commonest shape; among equals the largest."""
        shapes = Counter(row.shape for row in self._rows)
        usual = max(shapes, key=lambda shape: (shapes[shape], math.prod(shape)), default=None)
        return [slot for slot, row in enumerate(self._rows) if row.shape == usual]

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for rows, labels, written in waiting:
            if written is not None:
                written.synchronize()
            self._dtype = rows.dtype
            for row, label in self._new(rows.cpu().contiguous().view(torch.int16).numpy(), labels):
                if self._taken < self.capacity:
                    slot = self._taken
                    self._rows.append(row.copy())
                else:
                    slot = int(torch.randint(self.capacity, (), generator=self._chance))
                    self._rows[slot] = row.copy()
                self._labels[slot] = label
                self._taken += 1

    def _new(self, rows: np.ndarray, labels: Sequence[tuple[int, int]]) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
        """Those that have not come lately."""
        if len(self._seen) > 4 * self.capacity:
            self._seen.clear()
        for row, label in zip(rows, labels, strict=True):
            digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
            if digest not in self._seen:
                self._seen.add(digest)
                yield row, label


@torch.inference_mode()
def expected(sample: CalibrationSample, groups: Tensor, head: Head, levels: Iterable[float]) -> dict[float, Tally]:
    """What levels deliver on a sample, on the noise field in use and at the resolution that the client sees.

    Not the closed form: one field's level scatters around it by 0.02 (docs/decisions/0001), which is the whole margin.
    A level of text is judged on the rows of answers that were given nearest to it.

    Args:
        sample: clean rows.
        groups: [M] int64, the input of each row, or where the sample has a readout of each row that it reads.
    """
    phi = head.phi(sample.features if sample.field_features is None else sample.field_features)
    near = torch.zeros(1, dtype=torch.int64) if sample.at is None else sample.at.unique().cpu()
    judged: dict[int, tuple[JudgedRows, Tensor]] = {}
    tallies = {}
    for level in levels:
        position = head.position(Setting(level))
        place = int(near[(near - position).abs().argmin()])
        if place not in judged:
            judged[place] = _judged(sample, phi, groups, place)
        rows, number = judged[place]
        agreed = rows.same(head.matrix_at(position), scale_of(position)).cpu()
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
