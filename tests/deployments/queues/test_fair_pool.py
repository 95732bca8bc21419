"""FairPool: who waits for whom where items cost what nobody could tell before."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from deployments.queues.fair_pool import FairPool
from deployments.queues.room import Room
from policies.errors import Unavailable
from policies.terms import Share


class Worker:
    """Computes for as many thousandths of a second as an item says; a negative one fails. Keeps the order."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, item: int) -> int:
        self.gate.wait()
        self.order.append(item)
        until = time.thread_time() + abs(item) / 1e3
        while time.thread_time() < until:
            pass
        if item < 0:
            raise ValueError("a bad item")
        return 2 * item


Make = Callable[..., FairPool[int, int]]


@pytest_asyncio.fixture
async def make() -> AsyncIterator[Make]:
    made: list[FairPool[int, int]] = []

    def build(run: Worker, workers: int = 1, bound: int = 100) -> FairPool[int, int]:
        made.append(FairPool(run, workers=workers, queue_bound=bound))
        return made[-1]

    yield build
    for pool in made:
        pool.close()


async def queued(pool: FairPool[int, int], flow: str, *items: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(pool.submit(item, Share(flow=flow))) for item in items]
    await asyncio.sleep(0)
    return tasks


async def test_results_and_errors_are_their_items_own(make: Make) -> None:
    pool = make(Worker(), workers=2)
    answers = await asyncio.gather(*await queued(pool, "a", 1, -1, 2), return_exceptions=True)
    assert answers[0] == 2 and isinstance(answers[1], ValueError) and answers[2] == 4


@pytest.mark.parametrize("large", [40, -40])
async def test_a_flood_of_what_takes_long_or_fails_late_lets_others_by(make: Make, large: int) -> None:
    worker = Worker()
    pool = make(worker)
    worker.gate.clear()
    flood = await queued(pool, "flood", *[large] * 6)
    quiet = await queued(pool, "quiet", *range(1, 7))
    worker.gate.set()
    await asyncio.gather(*flood, *quiet, return_exceptions=True)
    # One of the flood's was at work already; of a second none is begun before six of the other tenant's are done.
    assert worker.order[0] == large and worker.order[1:7] == [1, 2, 3, 4, 5, 6]


async def test_what_was_dear_is_paid_off_even_by_one_that_asks_one_at_a_time(make: Make) -> None:
    worker = Worker()
    pool = make(worker)
    (first,) = await queued(pool, "flood", 50)
    others = await queued(pool, "quiet", 1, 2, 3, 4)
    await first
    (again,) = await queued(pool, "flood", 50)
    await asyncio.gather(again, *others)
    assert worker.order == [50, 1, 2, 3, 4, 50]


async def test_a_caller_that_leaves_takes_its_item_along_and_a_full_queue_refuses(make: Make) -> None:
    worker = Worker()
    pool = make(worker, bound=2)
    worker.gate.clear()
    first, *waiting = await queued(pool, "a", 1, 2, 3)
    with pytest.raises(Unavailable):
        await pool.submit(4, Share(flow="a"))
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    assert len(pool) == 1
    worker.gate.set()
    assert await asyncio.gather(first, waiting[1]) == [2, 6]
    assert worker.order == [1, 3]


async def test_what_is_known_to_be_dear_lets_others_by_while_it_is_at_work() -> None:
    worker = Worker()
    pool: FairPool[int, int] = FairPool(worker, workers=2, queue_bound=100, cost=lambda item: item / 1e3)
    worker.gate.clear()
    tasks = await queued(pool, "other", 1, 1) + await queued(pool, "flood", *[40] * 4)
    tasks += await queued(pool, "quiet", *range(2, 8))
    worker.gate.set()
    await asyncio.gather(*tasks)
    second = [at for at, item in enumerate(worker.order) if item == 40][1]
    assert set(worker.order[:second]) >= set(range(2, 8)), "nobody waits for two of the flood's at once"
    pool.close()


async def test_what_was_expected_to_be_dear_and_was_not_is_given_back() -> None:
    worker = Worker()
    pool: FairPool[int, int] = FairPool(
        worker, workers=1, queue_bound=100, cost=lambda item: 60.0 if item < 9 else 0.02
    )
    worker.gate.clear()
    tasks = await queued(pool, "feared", *range(1, 5)) + await queued(pool, "known", *[20] * 4)
    worker.gate.set()
    await asyncio.gather(*tasks)
    assert worker.order[:5].count(20) <= 1
    pool.close()


@pytest_asyncio.fixture
async def roomy() -> AsyncIterator[tuple[FairPool[int, int], Worker, Room]]:
    """A pool whose results, of a byte each, may be held eight at a time."""
    worker, room = Worker(), Room(8, 100)
    pool: FairPool[int, int] = FairPool(worker, workers=2, queue_bound=100, room=room, size=lambda _: 1)
    yield pool, worker, room
    pool.close()


class Holders:
    """Each asks for an item, and holds its result until it is let go."""

    def __init__(self, pool: FairPool[int, int]) -> None:
        self._pool, self.go = pool, asyncio.Event()

    async def _hold(self, item: int, flow: str) -> int:
        async with self._pool.lent(item, Share(flow=flow)) as result:
            await self.go.wait()
            return result

    async def come(self, flow: str, *items: int) -> list[asyncio.Task[int]]:
        tasks = [asyncio.create_task(self._hold(item, flow)) for item in items]
        await asyncio.sleep(0)
        return tasks


async def rested(pool: FairPool[int, int]) -> None:
    while pool._running:
        await asyncio.gather(*pool._running)


async def test_nothing_is_begun_that_nobody_has_room_for_and_no_tenant_has_all_of_it(
    roomy: tuple[FairPool[int, int], Worker, Room],
) -> None:
    pool, worker, _ = roomy
    holders = Holders(pool)
    tasks = await holders.come("flood", *[1] * 20)
    await rested(pool)
    assert worker.order == [1] * 4
    tasks += await holders.come("quiet", *[2] * 20)
    await rested(pool)
    assert worker.order == [1] * 4 + [2] * 2
    tasks += await holders.come("late", 3)
    await rested(pool)
    assert worker.order[6:] == [3]
    holders.go.set()
    assert sorted(await asyncio.gather(*tasks)) == [2] * 20 + [4] * 20 + [6]
    assert 1 in worker.order[7:11] and 2 in worker.order[7:11]


async def test_whoever_leaves_at_whatever_moment_gives_back_his_room(
    roomy: tuple[FairPool[int, int], Worker, Room],
) -> None:
    pool, worker, room = roomy
    for moment in range(12):
        holders = Holders(pool)
        (bad,) = await holders.come("flow", -1)
        tasks = await holders.come("flow", *[1] * 6)
        for _ in range(moment):
            await asyncio.sleep(0.0005)
        for task in tasks:
            task.cancel()
        await asyncio.gather(bad, *tasks, return_exceptions=True)
        await rested(pool)
        assert room.size == 0 and not room._held and len(pool) == 0
    holders = Holders(pool)
    worker.order.clear()
    tasks = await holders.come("flow", *[1] * 6)
    await rested(pool)
    assert worker.order == [1] * 4
    holders.go.set()
    await asyncio.gather(*tasks)
