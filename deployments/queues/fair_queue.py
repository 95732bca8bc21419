"""Waiting in front of a shared model, fair between tenants."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Generic, TypeVar

from policies.errors import Unavailable

T = TypeVar("T")


@dataclass(eq=False)
class _Flow(Generic[T]):
    name: str
    weight: float
    served: float
    """Cost served so far over weight, on the queue's own clock."""
    waiting: OrderedDict[int, tuple[float, T]] = field(default_factory=OrderedDict)
    """Cost and item, by number of arrival."""


class FlowBound:
    """Bounds what one flow may have under way, before and in the queue.

    Args:
        bound: most requests of a flow at once.
        size: most bytes of them; one request always passes.
    """

    def __init__(self, bound: int, size: int) -> None:
        self._bound, self._size = bound, size
        self._held: dict[str, tuple[int, int]] = {}

    @contextmanager
    def hold(self, flow: str, size: int) -> Iterator[None]:
        """One more of `flow`, of so many bytes, within.

        Raises:
            Unavailable: the flow has `bound` already, or would have more bytes than it may.
        """
        requests, held = self._held.get(flow, (0, 0))
        if requests >= self._bound or (requests and held + size > self._size):
            raise queue_full(requests)
        self._held[flow] = (requests + 1, held + size)
        try:
            yield
        finally:
            requests, held = self._held.pop(flow)
            if requests > 1:
                self._held[flow] = (requests - 1, held - size)


def queue_full(bound: int) -> Unavailable:
    """What a tenant is told whose part of a queue is full."""
    return Unavailable(
        f"{bound} requests of this tenant are already waiting for the model; retry later.",
        retry_after=1,
        code="queue_full",
    )


class FairQueue(Generic[T]):
    """Items of many flows, released so that waiting flows are served in proportion to their weights.

    Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), which for token costs is the virtual token counter of
    Sheng et al. (OSDI 2024): each flow counts the cost it was served over its weight, and the lowest count goes next. A
    flow that was idle resumes at the clock, so it keeps no credit; one that was just served keeps its debt, so sending
    one item at a time gains nothing. Order within a flow is first in, first out. Not thread-safe.

    Args:
        bound: most items that one flow may have waiting.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._clock = 0.0
        self._flows: dict[str, _Flow[T]] = {}
        self._places: dict[int, _Flow[T]] = {}
        """By its number, where an item waits."""
        self._ready: list[tuple[float, int, _Flow[T]]] = []
        self._idle: list[tuple[float, int, _Flow[T]]] = []
        """Heaps by cost served. An entry whose flow has been served since, or waits no more, has passed."""
        self._numbers = count()
        self._at_work = 0

    def __len__(self) -> int:
        return len(self._places)

    def waiting(self, flow: str) -> int:
        """How many items of a flow are waiting."""
        return len(self._flows[flow].waiting) if flow in self._flows else 0

    def push(self, flow: str, weight: float, cost: float, item: T) -> int:
        """Queue an item; the flow's weight is the latest given.

        Returns:
            Its number, by which it can be taken back.

        Raises:
            Unavailable: the flow has `bound` items waiting.
            ValueError: a weight or a cost that is not positive.
        """
        if not (weight > 0.0 and cost > 0.0):
            raise ValueError(f"weight and cost must be positive, not {weight} and {cost}")
        if self.waiting(flow) >= self._bound:
            raise queue_full(self._bound)
        state = self._flows.setdefault(flow, _Flow(flow, weight, self._clock))
        number = next(self._numbers)
        if not state.waiting:
            state.served = max(state.served, self._clock)
            heappush(self._ready, (state.served, number, state))
        state.weight = weight
        state.waiting[number] = (cost, item)
        self._places[number] = state
        return number

    def peek(self) -> T | None:
        """The item that `pop` would release, or None."""
        state = self._next()
        return next(iter(state.waiting.values()))[1] if state else None

    def pop(self, *, charged_later: bool = False, may: Callable[[str], bool] = lambda _: True) -> T | None:
        """Release the next item, or None where nothing waits; in the logarithm of the number of flows.

        Args:
            may: whether a flow's item may be released now; one that may not keeps its turn.
            charged_later: `charge` will say what it cost in truth; until then nothing is forgotten of who was served.
        """
        passed = []
        while (state := self._next()) is not None and not may(state.name):
            passed.append(heappop(self._ready))
        if state is not None:
            heappop(self._ready)
        for entry in passed:
            heappush(self._ready, entry)
        if state is None:
            return None
        self._at_work += charged_later
        number, (cost, item) = state.waiting.popitem(last=False)
        del self._places[number]
        self._clock = max(self._clock, state.served)
        state.served += cost / state.weight
        heappush(self._ready if state.waiting else self._idle, (state.served, number, state))
        self._forget_settled()
        return item

    def charge(self, flow: str, weight: float, cost: float) -> None:
        """Add to what a flow was served, or take off, what was known only after `pop`; no flow gets credit by it."""
        self._at_work -= 1
        state = self._flows.setdefault(flow, _Flow(flow, weight, self._clock))
        state.served = max(self._clock, state.served + cost / weight)
        heappush(self._ready if state.waiting else self._idle, (state.served, next(self._numbers), state))
        self._forget_settled()

    def discard(self, number: int) -> bool:
        """Take back a waiting item, uncharged; False where it is not waiting. Its time does not grow with the queue."""
        state = self._places.pop(number, None)
        if state is None:
            return False
        del state.waiting[number]
        if not state.waiting:
            heappush(self._idle, (state.served, number, state))
        self._forget_settled()
        return True

    def _next(self) -> _Flow[T] | None:
        while self._ready:
            served, _, state = self._ready[0]
            if state.waiting and served == state.served:
                return state
            heappop(self._ready)
        return None

    def _forget_settled(self) -> None:
        """An idle flow at or behind the clock is as good as unknown; so is every flow once nothing waits or works."""
        if not self._places and not self._at_work:
            self._flows.clear()
            self._ready.clear()
            self._idle.clear()
        while self._idle and self._idle[0][0] <= self._clock:
            served, _, state = heappop(self._idle)
            if not state.waiting and served == state.served and self._flows.get(state.name) is state:
                del self._flows[state.name]
