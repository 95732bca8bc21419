"""Who gets a seat in the text engine, and who has a row of its next step: fair between tenants, counted in tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from deployments.engines.text.token_shares import TokenShares
from deployments.queues.fair_queue import queue_full

T = TypeVar("T")

SEATS_PER_ROW = 4
"""Sequences that can be resident for each row of a step: what a newcomer finds free while a flood runs."""
_SEAT_SHARE, _PAGE_SHARE = 1, 3
"""A flow may hold so many times the seats and the pages that it leaves free."""


@dataclass
class _Held(Generic[T]):
    waiting: deque[tuple[int, T]] = field(default_factory=deque)
    seats: int = 0
    pages: int = 0


class WaitingLine(Generic[T]):
    """Requests before the engine, released to seats and memory in the order of who has been served least.

    A flow alone may fill every row of a step, but never all seats nor all memory: it may hold a few times what it
    leaves free (dynamic thresholds, Choudhury and Hahne, ToN 1998), so that a newcomer is seated at once, whoever came
    before. What is next in turn and does not fit is waited for, however large, so that small requests cannot starve it.
    Not thread-safe.

    Args:
        shares: who has been served what; its flows join here, and leave when their requests do.
        bound: most requests that one flow may have waiting.
        rows: sequences of a step.
        pages: of the key-value cache.
    """

    def __init__(self, shares: TokenShares, *, bound: int, rows: int, pages: int) -> None:
        self._shares, self._bound, self._rows = shares, bound, rows
        self.free_seats, self.free_pages = rows * SEATS_PER_ROW, pages
        self._flows: dict[str, _Held[T]] = {}

    def __len__(self) -> int:
        return sum(len(held.waiting) for held in self._flows.values())

    def push(self, flow: str, weight: float, pages: int, item: T) -> None:
        """Queue a request that takes so many pages.

        Raises:
            Unavailable: the flow has `bound` requests waiting.
        """
        held = self._flows.setdefault(flow, _Held())
        if len(held.waiting) >= self._bound:
            raise queue_full(self._bound)
        self._shares.join(flow, weight)
        held.waiting.append((pages, item))

    def pop(self) -> T | None:
        """The next request that may have a seat and its pages, which it now holds; None where none may."""
        flow = self._shares.least(name for name, held in self._flows.items() if held.waiting and self._may(held))
        if flow is None:
            return None
        held = self._flows[flow]
        pages = held.waiting[0][0]
        if not self.free_seats or pages > self.free_pages:
            return None
        self._hold(held, 1, pages)
        return held.waiting.popleft()[1]

    def release(self, flow: str, pages: int) -> None:
        """A request that had a seat is done."""
        self._hold(self._flows[flow], -1, -pages)
        self._gone(flow)

    def discard(self, flow: str, item: T) -> bool:
        """Take back a waiting request; False where it is not waiting."""
        held = self._flows.get(flow, _Held[T]())
        for index, (_, waiting) in enumerate(held.waiting):
            if waiting is item:
                del held.waiting[index]
                self._gone(flow)
                return True
        return False

    def drain(self) -> list[T]:
        """Take back all that waits."""
        everybody = [(flow, item) for flow, held in self._flows.items() for _, item in held.waiting]
        for flow, item in everybody:
            self.discard(flow, item)
        return [item for _, item in everybody]

    def _may(self, held: _Held[T]) -> bool:
        """Whether a flow may have its next request's seat and pages beside what it holds already."""
        if not held.seats:
            return True
        pages = held.waiting[0][0]
        seated = held.seats < self._rows and held.seats + 1 <= _SEAT_SHARE * (self.free_seats - 1)
        return seated and held.pages + pages <= _PAGE_SHARE * (self.free_pages - pages)

    def _hold(self, held: _Held[T], seats: int, pages: int) -> None:
        held.seats, held.pages = held.seats + seats, held.pages + pages
        self.free_seats, self.free_pages = self.free_seats - seats, self.free_pages - pages

    def _gone(self, flow: str) -> None:
        self._shares.leave(flow)
        held = self._flows[flow]
        if not held.waiting and not held.seats:
            del self._flows[flow]


@dataclass(frozen=True)
class Work(Generic[T]):
    """What one resident sequence could do in the next step.

    Attributes:
        flow: whose it is.
        tokens: 1 to decode, or what is left of its prompt.
        decoding: whether its prompt has been read.
        last: the step that it last had a row in, -1 for none.
        item: the sequence.
    """

    flow: str
    tokens: int
    decoding: bool
    last: int
    item: T


def step_rows(shares: TokenShares, work: Sequence[Work[T]], *, rows: int, tokens: int) -> list[T]:
    """The sequences that have a row of the next step: those that decode first, then those whose prompts are read.

    Flows go by what they have been served, a flow's own sequences by how long they have waited for a row; so a long
    prompt, read in parts, comes as often as any other sequence.

    Args:
        work: of all resident sequences, oldest first.
        rows: most sequences of a step.
        tokens: most tokens of a step, at least `rows`.
    """
    reading = tokens - min(rows, sum(w.decoding for w in work))
    waited = sorted(work, key=lambda w: w.last)
    decoding: list[T] = []
    prompts: list[T] = []
    for turn in shares.order([(w.flow, min(w.tokens, tokens), w) for w in waited]):
        if len(decoding) + len(prompts) == rows:
            break
        if turn.decoding:
            decoding.append(turn.item)
        elif reading > 0:
            prompts.append(turn.item)
            reading -= turn.tokens
    return decoding + prompts
