"""FairPool: work of unequal size in a few threads, fair between tenants by the processor time that it took."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from deployments.queues.fair_queue import FairQueue
from policies.terms import Share

Item = TypeVar("Item")
Result = TypeVar("Result")
_LEAST = 1e-4
"""What an item costs before it is done, in seconds."""


@dataclass(eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    share: Share
    future: asyncio.Future[Result]


class FairPool(Generic[Item, Result]):
    """Runs items one by one in threads of its own; under contention each tenant gets its weight's share of them.

    What an item costs is known only once it is done, as with a picture of few bytes and many pixels: the processor time
    that it took, or took to fail, is then charged to its tenant, whose next item waits the longer.

    Args:
        run: one item to its result; called in a thread.
        workers: threads.
        queue_bound: items that one tenant may have waiting.
        nice: how much its threads let others of the machine go before, as the command of that name; Linux alone.
    """

    def __init__(self, run: Callable[[Item], Result], *, workers: int, queue_bound: int, nice: int = 0) -> None:
        self._run, self._idle = run, workers
        self._queue: FairQueue[_Entry[Item, Result]] = FairQueue(queue_bound)
        self._threads = ThreadPoolExecutor(workers, "fair-pool", partial(_lower_priority, nice))
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item, share: Share) -> Result:
        """An item's result; leaving early takes it out of the queue.

        Raises:
            Unavailable: this tenant's part of the queue is full.
            Exception: what `run` raised.
        """
        entry = _Entry(item, share, asyncio.get_running_loop().create_future())
        number = self._queue.push(share.flow, share.weight, _LEAST, entry)
        self._start()
        try:
            result: Result = await entry.future
            return result
        except asyncio.CancelledError:
            self._queue.discard(number)
            raise

    def __len__(self) -> int:
        return len(self._queue)

    def close(self) -> None:
        """End the threads once they are done with what they are at."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        while self._idle and (entry := self._queue.pop()) is not None:
            self._idle -= 1
            task = asyncio.create_task(self._work(entry))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _work(self, entry: _Entry[Item, Result]) -> None:
        outcome, seconds = await asyncio.get_running_loop().run_in_executor(self._threads, self._timed, entry.item)
        self._queue.charge(entry.share.flow, entry.share.weight, seconds)
        self._idle += 1
        self._start()
        if entry.future.done():
            return
        if isinstance(outcome, Exception):
            entry.future.set_exception(outcome)
        else:
            entry.future.set_result(outcome)

    def _timed(self, item: Item) -> tuple[Result | Exception, float]:
        """What came of an item, and the seconds that this thread computed for it."""
        began = time.thread_time()
        try:
            outcome: Result | Exception = self._run(item)
        except Exception as error:
            outcome = error
        return outcome, time.thread_time() - began


def _lower_priority(nice: int) -> None:
    """Of the calling thread, which Linux schedules by itself."""
    if nice and sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
