"""Live rows: a bounded sample of the final layer's recent inputs, in which no tenant outweighs the others."""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FLUSH_ROWS = 256
"""Rows that wait on their device before they are copied off it together."""
LEAST_AT = 200
"""Rows given at one position that are judged apart from those of other positions."""
SHARE = 5
"""One tenant's part of what levels are judged and solved on is at most one in so many."""
OLDEST_S = 86_400.0
"""Rows older than a day give way first: it is the same hour's traffic again, and who has left counts no longer."""
Label = tuple[int, int, int]
"""Of a row: the hash of its input, its position, and the hash of its tenant."""


@dataclass(frozen=True)
class Kept:
    """What a reservoir holds.

    Attributes:
        rows: [N, ...] as they were kept.
        groups: [N] int64, a hash of the input that each came from: a picture, a prompt.
        at: [N] int64, for text the ladder position at which the answer that a row is a step of was being given.
        owners: [N] int64, a hash of the tenant that sent it, which only this process can make.
        scale: for masks, output pixels per logit along a side.
    """

    rows: Tensor
    groups: Tensor
    at: Tensor
    owners: Tensor
    scale: int = 1

    @property
    def inputs(self) -> int:
        """Different inputs among the rows."""
        return len(self.groups.unique())

    @property
    def tenants(self) -> int:
        """How many tenants' rows it holds."""
        return len(self.owners.unique())

    def solved(self) -> Kept:
        """About half of the inputs, with all their rows: what a refit is solved on."""
        return self._of(self.groups % 2 == 0)

    def held_out(self) -> Kept:
        """The other inputs, which no refit is solved on, ever: what levels are judged on, before a refit and after."""
        return self._of(self.groups % 2 == 1)

    def _of(self, chosen: Tensor) -> Kept:
        rows, groups, at, owners = (part[chosen] for part in (self.rows, self.groups, self.at, self.owners))
        return Kept(rows, groups, at, owners, self.scale)

    def without(self, owner: int) -> Kept:
        """What is left without one tenant's rows."""
        return self._of(self.owners != owner)

    def capped(self) -> Kept:
        """As many rows as there can be of which no tenant has more than a fifth; of fewer than five tenants, none."""
        owners, counts = self.owners.unique(return_counts=True)
        most = _largest_cap(counts)
        order = torch.randperm(len(self.owners), generator=torch.Generator().manual_seed(0))
        order = order[self.owners[order].argsort(stable=True)]
        first = counts.cumsum(0) - counts
        rank = torch.arange(len(order)) - first.repeat_interleave(counts)
        return self._of(order[rank < most].sort().values)

    def fair(self, least: int) -> Kept:
        """`capped` where that leaves so many inputs, else all: what there is of few tenants is better than nothing."""
        capped = self.capped()
        return capped if capped.inputs >= least else self

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


def _largest_cap(counts: Tensor) -> int:
    """The largest number of rows c that is at most a fifth of all, where tenants of `counts` rows keep at most c."""
    low, high = 0, int(counts.max()) if len(counts) else 0
    while low < high:  # the sum of min(count, c), less 5 c, is concave in c and 0 at 0
        middle = (low + high + 1) // 2
        if int(counts.clamp(max=middle).sum()) >= SHARE * middle:
            low = middle
        else:
            high = middle - 1
    return low


class LiveRows:
    """A reservoir of recent rows of all tenants, in memory only. Safe from any thread.

    A row that came before is not kept again: who repeats an input would otherwise decide what the levels are judged on.
    Once it is full a new row takes the place of one of the tenant that has most, drawn at random, so that a tenant that
    floods it pushes out its own rows alone, and tenants keep equally many if they send enough. What is kept of one
    reaches back some multiple of its part, thinner and thinner, but a day at most while it is full. Rows are kept in 16
    bits: `capacity` times 2 bytes times the size of a row, 8 MB for 8,192 rows of 512 features, 50 MB for 1,536 tiles
    of 8 x 8 cells of 256.

    Args:
        capacity: most rows.
        held_out: whether to keep only inputs that no refit is solved on.
        clock: seconds, for a row's age.
    """

    def __init__(self, capacity: int, *, held_out: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity = capacity
        self._held_out, self._clock = held_out, clock
        self._key = secrets.token_bytes(32)
        self._taken = 0
        # As numpy: a tensor that is made in inference mode could not be written to outside of it.
        self._rows: list[np.ndarray] = []
        self._dtype = torch.float16
        self._labels = np.zeros((capacity, 3), dtype=np.int64)
        self._came = np.zeros(capacity)
        # Tenants are numbered while they have rows, of which there are no more than rows.
        self._numbers: dict[int, int] = {}
        self._owner = np.zeros(capacity, dtype=np.int64)
        self._counts = np.zeros(capacity, dtype=np.int64)
        self._waiting: list[tuple[Tensor, list[Label], torch.cuda.Event | None]] = []
        self._seen: set[bytes] = set()
        self._chance = np.random.default_rng(0)
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

    def add(
        self, rows: Tensor, groups: Sequence[int], at: Sequence[int] | None = None, flows: Sequence[str] | None = None
    ) -> None:
        """Keep rows [n, ...], alike in shape and dtype, with the hash of each one's input, its position and its flow.

        Raises:
            ValueError: another number of groups, positions or flows than of rows.
        """
        dtype = torch.bfloat16 if rows.dtype is torch.bfloat16 else torch.float16
        owners = self._owners(flows or [""] * len(groups))
        labels = list(zip(groups, at or [0] * len(groups), owners, strict=True))
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
                    slot = self._given_up(label[2])
                    self._rows[slot] = row.copy()
                self._place(slot, label)
                self._taken += 1

    def _place(self, slot: int, label: Label) -> None:
        """Note whose row a slot holds now."""
        number = self._numbers.get(label[2])
        if number is None:
            number = self._numbers[label[2]] = int(self._counts.argmin())  # one that nobody has: its count is 0
        self._owner[slot], self._labels[slot], self._came[slot] = number, label, self._clock()
        self._counts[number] += 1

    def _given_up(self, owner: int) -> int:
        """The slot that a new row of a tenant takes, which is then nobody's."""
        slot = int(self._came.argmin())
        if self._clock() - self._came[slot] <= OLDEST_S:
            most, own = int(self._counts.max()), self._numbers.get(owner)
            if own is not None and self._counts[own] == most:
                number = own
            else:
                number = self._one_of(self._counts == most)
            slot = self._one_of(self._owner == number)
        number = int(self._owner[slot])
        self._counts[number] -= 1
        if not self._counts[number]:
            del self._numbers[int(self._labels[slot, 2])]
        return slot

    def _one_of(self, chosen: np.ndarray) -> int:
        places = np.flatnonzero(chosen)
        return int(places[self._chance.integers(len(places))])

    def _owners(self, flows: Sequence[str]) -> list[int]:
        """Hashes of flows that tell nobody else who they are."""
        found = {
            flow: int.from_bytes(hashlib.blake2b(flow.encode(), digest_size=8, key=self._key).digest(), signed=True)
            for flow in set(flows)
        }
        return [found[flow] for flow in flows]

    def _new(self, rows: np.ndarray, labels: Sequence[Label]) -> Iterator[tuple[np.ndarray, Label]]:
        """Those that have not come lately, and of inputs that are kept."""
        if len(self._seen) > 4 * self.capacity:
            self._seen.clear()
        for row, label in zip(rows, labels, strict=True):
            if self._held_out and label[0] % 2 == 0:
                continue
            digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
            if digest not in self._seen:
                self._seen.add(digest)
                yield row, label
