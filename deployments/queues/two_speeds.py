"""TwoSpeeds: work that is short at the process's own priority, and work that is long behind everything else."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

from deployments.queues.fair_pool import FairPool
from deployments.queues.room import Room
from policies.terms import Share

Item = TypeVar("Item")
Result = TypeVar("Result")
NICENESS = 15
"""Added to that of the threads for what is long: a thirtieth of a core that others want, all of one that nobody wants.
Not the most there is, since such a thread may hold the interpreter's lock while it waits for its turn."""
LONG_S = 0.1
"""Of a processor: what takes longer is long."""


class TwoSpeeds(Generic[Item, Result]):
    """Two pools, each fair between tenants.

    A large picture takes seconds of a processor and a small one milliseconds. In the same threads the large ones of one
    tenant would hold up the small ones of all others, and beside a forward they would take half of its cores.

    Args:
        run: one item to its result; called in a thread.
        cost: what an item will take, in seconds of a processor.
        workers: threads for what is short; half as many for what is long.
        queue_bound: items that one tenant may have waiting, of each kind.
        room: what results may be held, of each kind; None: without a bound.
        size: bytes of a result.

    Attributes:
        rooms: of what is short and of what is long.
    """

    def __init__(
        self,
        run: Callable[[Item], Result],
        *,
        cost: Callable[[Item], float],
        workers: int,
        queue_bound: int,
        room: Callable[[], Room | None] = lambda: None,
        size: Callable[[Result], int] = lambda _: 0,
    ) -> None:
        self._cost = cost
        self.rooms = room(), room()

        def pool(threads: int, room: Room | None, begin: Callable[[], None] | None) -> FairPool[Item, Result]:
            return FairPool(run, workers=threads, queue_bound=queue_bound, cost=cost, room=room, size=size, begin=begin)

        self._short = pool(workers, self.rooms[0], None)
        self._long = pool(max(1, workers // 2), self.rooms[1], behind_others)

    async def submit(self, item: Item, share: Share) -> Result:
        """As `FairPool.submit`."""
        async with self.lent(item, share) as result:
            return result

    def lent(self, item: Item, share: Share) -> AbstractAsyncContextManager[Result]:
        """As `FairPool.lent`."""
        return (self._long if self._cost(item) > LONG_S else self._short).lent(item, share)

    def close(self) -> None:
        """End the threads once they are done with what they are at."""
        self._short.close()
        self._long.close()


def behind_others() -> None:
    """Let the calling thread compute when others do not want to. Those that it starts do as it does."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, 0, min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS))  # Linux: a thread's
