"""FairBatcher: batches formed across tenants by weighted fair queueing, run in one thread of their own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from deployments.queues.fair_queue import FairQueue
from policies.terms import Share

Item = TypeVar("Item")
Result = TypeVar("Result")


class FairBatcher(Generic[Item, Result]):
    """Collects items into batches; under contention each tenant fills its weight's share of them.

    The event loop never blocks: `run` is called in a dedicated thread, one batch at a time, and while it runs the next
    batch gathers.

    Args:
        run: one batch in, as many results out, in order.
        max_batch_size: items in a batch.
        max_wait_ms: how long a batch that is not full waits for company, in milliseconds.
        queue_bound: items that one tenant may have waiting.
        coming: how many items are known to be on their way: while there are none nothing is waited for; None: nobody
            knows, and it is whenever the thread is idle.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        *,
        max_batch_size: int,
        max_wait_ms: float,
        queue_bound: int,
        coming: Callable[[], int] | None = None,
    ) -> None:
        self._run = run
        self._coming = coming
        self._size = max_batch_size
        self._wait_s = max_wait_ms / 1000.0
        self._queue: FairQueue[tuple[Item, asyncio.Future[Result]]] = FairQueue(queue_bound)
        self._arrived = asyncio.Event()
        self._began: float | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forward")
        self._loop = asyncio.create_task(self._batches(), name="fair-batcher")

    async def submit(self, item: Item, share: Share, cost: float = 1.0) -> Result:
        """An item's result; leaving early takes it out of the queue.

        Args:
            cost: what it takes of its tenant's share, in any unit that is the same for all.

        Raises:
            Unavailable: this tenant's part of the queue is full.
            Exception: what `run` raised for the item; a batch that fails is run again item by item.
        """
        entry = (item, asyncio.get_running_loop().create_future())
        number = self._queue.push(share.lane, share.pull, cost, entry)
        self._arrived.set()
        try:
            result: Result = await entry[1]
            return result
        except asyncio.CancelledError:
            self._queue.discard(number)
            raise

    def check(self, most_s: float) -> None:
        """Raises RuntimeError where nothing is answered: the loop has ended, or a batch takes longer than that."""
        if self._loop.done():
            raise RuntimeError("the batching loop has ended")
        if self._began is not None and time.monotonic() - self._began > most_s:
            raise RuntimeError(f"a batch has not ended for {most_s:g} s")

    async def alone(self, call: Callable[[], object]) -> None:
        """Call something in the thread, between batches. Raises what it does."""
        await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def __len__(self) -> int:
        return len(self._queue)

    async def aclose(self) -> None:
        """Stop after the running batch; what waits is cancelled."""
        self._loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._loop
        while (entry := self._queue.pop()) is not None:
            entry[1].cancel()
        self._thread.shutdown()

    async def _batches(self) -> None:
        while True:
            if idle := not len(self._queue):
                self._arrived.clear()
                await self._arrived.wait()
            await self._company(idle)
            await self._run_one()

    async def _company(self, idle: bool) -> None:
        """Wait for what may join a batch that is not full."""
        if self._coming is None:
            if idle and len(self._queue) < self._size:
                await asyncio.sleep(self._wait_s)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                while len(self._queue) < self._size and self._coming():
                    self._arrived.clear()
                    await self._arrived.wait()

    async def _run_one(self) -> None:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while len(batch) < self._size and (entry := self._queue.pop()) is not None:
            if not entry[1].done():
                batch.append(entry)
        if not batch:
            return
        await self._answer(batch)

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        loop, items = asyncio.get_running_loop(), [item for item, _ in batch]
        try:
            results = await loop.run_in_executor(self._thread, self._timed, items)
            answered = list(zip(batch, results, strict=True))
        except Exception as error:
            for entry in batch:
                if len(batch) > 1 and not entry[1].done():  # a bad item must not fail those that it came with
                    await self._answer([entry])
                elif not entry[1].done():
                    entry[1].set_exception(error)
            return
        for (_, future), result in answered:
            if not future.done():
                future.set_result(result)

    def _timed(self, items: list[Item]) -> Sequence[Result]:
        self._began = time.monotonic()
        try:
            return self._run(items)
        finally:
            self._began = None
