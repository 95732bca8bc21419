"""Waiting in front of a shared model, fair between tenants."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from policies.errors import Unavailable

T = TypeVar("T")


@dataclass
class _Flow(Generic[T]):
    weight: float
    served: float
    """Cost served so far over weight, on the queue's own clock."""
    waiting: deque[tuple[float, T]] = field(default_factory=deque)


class FlowBound:
    """Bounds what one flow may have under way, before and in the queue.

    Args:
        bound: most requests of a flow at once.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._held: dict[str, int] = {}

    @contextmanager
    def hold(self, flow: str) -> Iterator[None]:
        """One more of `flow`, within.

        Raises:
            Unavailable: the flow has `bound` already.
        """
        if self._held.get(flow, 0) >= self._bound:
            raise queue_full(self._bound)
        self._held[flow] = self._held.get(flow, 0) + 1
        try:
            yield
        finally:
            self._held[flow] -= 1
            if not self._held[flow]:
                del self._held[flow]


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
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def waiting(self, flow: str) -> int:
        """How many items of a flow are waiting."""
        return len(self._flows[flow].waiting) if flow in self._flows else 0

    def push(self, flow: str, weight: float, cost: float, item: T) -> None:
        """Queue an item; the flow's weight is the latest given.

        Raises:
            Unavailable: the flow has `bound` items waiting.
            ValueError: a weight or a cost that is not positive.
        """
        if not (weight > 0.0 and cost > 0.0):
            raise ValueError(f"weight and cost must be positive, not {weight} and {cost}")
        if self.waiting(flow) >= self._bound:
            raise queue_full(self._bound)
        state = self._flows.setdefault(flow, _Flow(weight, self._clock))
        if not state.waiting:
            state.served = max(state.served, self._clock)
        state.weight = weight
        state.waiting.append((cost, item))
        self._size += 1

    def peek(self) -> T | None:
        """The item that `pop` would release, or None."""
        state = self._next()
        return state.waiting[0][1] if state else None

    def pop(self) -> T | None:
        """Release the next item, or None where nothing waits. Linear in the number of flows, not of items."""
        state = self._next()
        if state is None:
            return None
        cost, item = state.waiting.popleft()
        self._size -= 1
        self._clock = state.served
        state.served += cost / state.weight
        self._forget_settled()
        return item

    def discard(self, item: T) -> bool:
        """Take back a waiting item, uncharged; False where it is not waiting."""
        for state in self._flows.values():
            for index, (_, waiting) in enumerate(state.waiting):
                if waiting is item:
                    del state.waiting[index]
                    self._size -= 1
                    self._forget_settled()
                    return True
        return False

    def _next(self) -> _Flow[T] | None:
        return min((s for s in self._flows.values() if s.waiting), key=lambda s: s.served, default=None)

    def _forget_settled(self) -> None:
        """An idle flow at or behind the clock is as good as unknown; so is every idle flow once nothing waits."""
        settled = [f for f, s in self._flows.items() if not s.waiting and (not self._size or s.served <= self._clock)]
        for flow in settled:
            del self._flows[flow]
