"""How much each tenant has been served, in tokens over its weight: the virtual token counters of the text engine."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass
class _Flow:
    weight: float
    served: float
    present: int = 0
    """Requests that wait or run."""


class TokenShares:
    """Counts tokens served by flow over its weight; who has the lowest count goes next (Sheng et al., OSDI 2024).

    A flow that was away resumes at the lowest count of those present, so it keeps no credit, but its own debt if that
    is higher. Safe from any thread: requests come and go in the server's loop, tokens are served in the engine's.
    """

    def __init__(self) -> None:
        self._flows: dict[str, _Flow] = {}
        self._lock = threading.Lock()

    def join(self, flow: str, weight: float) -> None:
        """A request of `flow` has come; the flow's weight is the latest given."""
        with self._lock:
            floor = self._floor()
            state = self._flows.setdefault(flow, _Flow(weight, floor))
            if not state.present:
                state.served = max(state.served, floor)
            state.weight = weight
            state.present += 1

    def leave(self, flow: str) -> None:
        """A request of `flow` is done, or taken back."""
        with self._lock:
            self._flows[flow].present -= 1
            floor = self._floor()
            anybody = any(state.present for state in self._flows.values())
            # An idle flow at or behind the others is as good as unknown; so is any once nobody is left.
            for name in [n for n, s in self._flows.items() if not s.present and (s.served <= floor or not anybody)]:
                del self._flows[name]

    def charge(self, flow: str, tokens: int) -> None:
        """`tokens` of `flow` have been served."""
        with self._lock:
            if state := self._flows.get(flow):
                state.served += tokens / state.weight

    def order(self, work: Sequence[tuple[str, int, T]]) -> list[T]:
        """Work items in the order in which to take them up for one step.

        Always the first left of the flow that would have been served least by then: so a step is shared by the weights,
        too, and not only the sum of many.

        Args:
            work: (flow, tokens that the item costs, item); a flow's own items in the order in which it wants them.
        """
        queues: dict[str, list[tuple[int, T]]] = {}
        for flow, cost, item in work:
            queues.setdefault(flow, []).append((cost, item))
        with self._lock:
            floor = self._floor()
            states = {flow: self._flows.get(flow, _Flow(1.0, floor)) for flow in queues}
            counts = {flow: state.served for flow, state in states.items()}
        ordered: list[T] = []
        taken = dict.fromkeys(queues, 0)
        while counts:
            flow = min(counts, key=counts.__getitem__)
            cost, item = queues[flow][taken[flow]]
            ordered.append(item)
            taken[flow] += 1
            counts[flow] += cost / states[flow].weight
            if taken[flow] == len(queues[flow]):
                del counts[flow]
        return ordered

    def behind(self, flow: str, others: Iterable[str], tokens: int) -> bool:
        """Whether a flow has been served less than each of the others, by so many tokens of its own or more."""
        with self._lock:
            floor = self._floor()
            own, *rest = (self._flows.get(name, _Flow(1.0, floor)) for name in (flow, *others))
        return all(own.served + tokens / own.weight <= other.served for other in rest)

    def least(self, flows: Iterable[str]) -> str | None:
        """The flow that has been served least; the first given among equals, None of none."""
        with self._lock:
            floor = self._floor()
            counts = {flow: self._flows[flow].served if flow in self._flows else floor for flow in flows}
        return min(counts, key=counts.__getitem__, default=None)

    def _floor(self) -> float:
        return min((state.served for state in self._flows.values() if state.present), default=0.0)
