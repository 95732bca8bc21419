"""FairBatcher: full batches, fair ones, and what happens to a batch that fails or a caller that leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from deployments.queues.batching import FairBatcher
from policies.errors import Unavailable
from policies.terms import Share


class Recorder:
    """Doubles numbers, and keeps the batches that it was given; waits while `gate` is closed."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[int] = set()

    def __call__(self, items: list[int]) -> list[int]:
        self.gate.wait()
        self.batches.append(items)
        self.threads.add(threading.get_ident())
        if -1 in items:
            raise ValueError("a bad item")
        return [2 * item for item in items]


Make = Callable[..., FairBatcher[int, int]]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[FairBatcher[int, int]] = []

    def build(run: Recorder, size: int = 4, bound: int = 100) -> FairBatcher[int, int]:
        made.append(FairBatcher(run, max_batch_size=size, max_wait_ms=5.0, queue_bound=bound))
        return made[-1]

    yield build
    for batcher in made:
        await batcher.aclose()


async def blocked(batcher: FairBatcher[int, int], run: Recorder) -> asyncio.Task[int]:
    """A batch that is running and waits, so that what follows queues."""
    run.gate.clear()
    task = asyncio.create_task(batcher.submit(0, Share(flow="first")))
    while len(batcher) == 0 and not task.done():
        await asyncio.sleep(0)
        if not batcher._queue and batcher._arrived.is_set():
            break
    while len(batcher):
        await asyncio.sleep(0.001)
    return task


async def test_items_that_arrive_together_share_a_batch_in_another_thread(make: Make) -> None:
    run = Recorder()
    batcher = make(run)
    results = await asyncio.gather(*(batcher.submit(i, Share(flow="a")) for i in range(4)))
    assert results == [0, 2, 4, 6]
    assert run.batches == [[0, 1, 2, 3]]
    assert threading.get_ident() not in run.threads


async def test_a_batch_waits_for_company_only_while_some_is_on_its_way() -> None:
    run, coming = Recorder(), [0]
    batcher = FairBatcher(run, max_batch_size=4, max_wait_ms=3_600_000.0, queue_bound=9, coming=lambda: coming[0])
    assert await batcher.submit(1, Share(flow="a")) == 2  # nobody is known to come: an hour is not waited
    coming[0] = 1
    first = asyncio.create_task(batcher.submit(2, Share(flow="a")))
    for _ in range(20):
        await asyncio.sleep(0)
    assert run.batches == [[1]]
    coming[0] = 0
    assert await batcher.submit(3, Share(flow="b")) == 6
    assert await first == 4 and run.batches == [[1], [2, 3]]
    await batcher.aclose()


async def test_a_flood_leaves_room_for_others_by_weight(make: Make) -> None:
    run = Recorder()
    batcher = make(run, size=3)
    first = await blocked(batcher, run)
    flood = [asyncio.create_task(batcher.submit(100 + i, Share(flow="flood", weight=1.0))) for i in range(12)]
    await asyncio.sleep(0)
    gold = [asyncio.create_task(batcher.submit(200 + i, Share(flow="gold", weight=2.0))) for i in range(4)]
    await asyncio.sleep(0)
    run.gate.set()
    await asyncio.gather(first, *flood, *gold)
    early = [item for batch in run.batches[1:3] for item in batch]
    assert sum(item >= 200 for item in early) == 4
    assert sum(100 <= item < 200 for item in early) == 2


async def test_a_bad_item_fails_alone_and_those_that_it_came_with_are_answered(make: Make) -> None:
    run = Recorder()
    batcher = make(run, size=3)
    answers = await asyncio.gather(*(batcher.submit(i, Share(flow=f"{i}")) for i in (1, -1, 2)), return_exceptions=True)
    assert answers[0] == 2 and isinstance(answers[1], ValueError) and answers[2] == 4
    assert run.batches == [[1, -1, 2], [1], [-1], [2]]
    assert await batcher.submit(5, Share(flow="a")) == 10


async def test_a_caller_that_leaves_takes_its_item_along(make: Make) -> None:
    run = Recorder()
    batcher = make(run)
    first = await blocked(batcher, run)
    leaving = asyncio.create_task(batcher.submit(7, Share(flow="a")))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert len(batcher) == 0
    run.gate.set()
    await first
    assert all(7 not in batch for batch in run.batches)


async def test_a_tenants_queue_is_bounded(make: Make) -> None:
    run = Recorder()
    batcher = make(run, bound=2)
    first = await blocked(batcher, run)
    waiting = [asyncio.create_task(batcher.submit(i, Share(flow="a"))) for i in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await batcher.submit(9, Share(flow="a"))
    other = asyncio.create_task(batcher.submit(3, Share(flow="b")))
    await asyncio.sleep(0)
    run.gate.set()
    assert await other == 6
    await asyncio.gather(first, *waiting)
