"""FairPool: work of unequal size in a few threads, fair between tenants by the processor time that it took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from deployments.queues.fair_queue import FairQueue
from deployments.queues.room import Room
from policies.terms import Share

Item = TypeVar("Item")
Result = TypeVar("Result")
_LEAST = 1e-4
"""What an item costs at least before it is done, in seconds."""


@dataclass(eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    share: Share
    cost: float
    future: asyncio.Future[Result]
    begun: bool = False
    done: bool = False
    left: bool = False
    size: int = 0


class FairPool(Generic[Item, Result]):
    """Runs items one by one in threads of its own; under contention each tenant gets its weight's share of them.

    What an item costs is known only once it is done: the processor time that it took, or took to fail, is then its
    tenant's, in the place of what was expected of it.

    Args:
        run: one item to its result; called in a thread.
        workers: threads.
        queue_bound: items that one tenant may have waiting.
        cost: what an item will take, in seconds of a processor, as far as that can be told beforehand.
        room: what results may be held by those who asked, by `lent`: while a tenant's part is full, none of its items
            is begun; None: without a bound.
        size: bytes of a result.
        begin: called once in each thread.
    """

    def __init__(
        self,
        run: Callable[[Item], Result],
        *,
        workers: int,
        queue_bound: int,
        cost: Callable[[Item], float] = lambda _: 0.0,
        room: Room | None = None,
        size: Callable[[Result], int] = lambda _: 0,
        begin: Callable[[], None] | None = None,
    ) -> None:
        self._run, self._idle, self._cost, self._room, self._size = run, workers, cost, room, size
        self._queue: FairQueue[_Entry[Item, Result]] = FairQueue(queue_bound)
        self._threads = ThreadPoolExecutor(workers, "fair-pool", begin)
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item, share: Share) -> Result:
        """An item's result; leaving early takes it out of the queue.

        Raises:
            Unavailable: this tenant's part of the queue is full.
            Exception: what `run` raised.
        """
        async with self.lent(item, share) as result:
            return result

    @asynccontextmanager
    async def lent(self, item: Item, share: Share) -> AsyncIterator[Result]:
        """As `submit`; the result has its place in the room until this ends."""
        cost = max(_LEAST, self._cost(item))
        entry: _Entry[Item, Result] = _Entry(item, share, cost, asyncio.get_running_loop().create_future())
        number = self._queue.push(share.lane, share.pull, cost, entry)
        self._start()
        try:
            yield await entry.future
        finally:
            entry.left = True
            if entry.future.done() and not entry.future.cancelled():
                entry.future.exception()  # which whoever leaves at that moment does not read
            self._queue.discard(number)
            self._give(entry)

    def __len__(self) -> int:
        return len(self._queue)

    def close(self) -> None:
        """End the threads once they are done with what they are at."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        may = self._room.may if self._room is not None else lambda _: True
        while self._idle and (entry := self._queue.pop(charged_later=True, may=may)) is not None:
            self._idle -= 1
            entry.begun = True
            if self._room is not None:
                self._room.take(entry.share.lane, 1, 0)
            task = asyncio.create_task(self._work(entry))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _work(self, entry: _Entry[Item, Result]) -> None:
        outcome, seconds = await asyncio.get_running_loop().run_in_executor(self._threads, self._timed, entry.item)
        self._queue.charge(entry.share.lane, entry.share.pull, seconds - entry.cost)
        self._idle += 1
        entry.done = True
        if entry.left:
            self._give(entry)
        elif isinstance(outcome, Exception):
            entry.future.set_exception(outcome)
        else:
            entry.size = self._size(outcome)
            if self._room is not None:
                self._room.take(entry.share.lane, 0, entry.size)
            entry.future.set_result(outcome)
        self._start()

    def _give(self, entry: _Entry[Item, Result]) -> None:
        """Give back an entry's place: once it is done, and nobody has its result any more."""
        if self._room is not None and entry.begun and entry.done:
            entry.begun = False
            self._room.take(entry.share.lane, -1, -entry.size)
            self._start()

    def _timed(self, item: Item) -> tuple[Result | Exception, float]:
        """What came of an item, and the seconds that this thread computed for it."""
        began = time.thread_time()
        try:
            outcome: Result | Exception = self._run(item)
        except Exception as error:
            outcome = error
        return outcome, time.thread_time() - began
