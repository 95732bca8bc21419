"""The store's time limit: a silent store is given up in time, a stalled event loop is not its fault."""

from __future__ import annotations

import asyncio
import time

import pytest

from tenants.live.cache import EntitlementCache
from tenants.store.loop_timeout import LoopTimeout
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend


async def test_what_does_not_come_is_given_up() -> None:
    with pytest.raises(TimeoutError):
        async with LoopTimeout(0.02):
            await asyncio.sleep(3600)


async def test_what_comes_in_time_is_answered_and_no_timer_stays() -> None:
    async with LoopTimeout(0.02):
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)


async def test_a_callers_own_cancellation_is_not_taken_for_the_limit() -> None:
    async def wait() -> None:
        async with LoopTimeout(60.0):
            await asyncio.sleep(3600)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_that_the_block_swallows_is_raised_at_its_end() -> None:
    async def swallow(error: Exception | None) -> None:
        async with LoopTimeout(60.0):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if error:
                    raise error from None

    for error in (None, ConnectionError("as if the store were away")):
        task = asyncio.create_task(swallow(error))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_who_cleans_up_after_a_cancellation_is_not_cancelled_again() -> None:
    done = []

    async def clean_up() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            async with LoopTimeout(60.0):
                await asyncio.sleep(0)
            done.append(True)

    task = asyncio.create_task(clean_up())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert done and task.cancelled()


async def test_a_loop_that_never_keeps_up_does_not_wait_for_ever() -> None:
    async def stall() -> None:
        while True:
            time.sleep(0.01)
            await asyncio.sleep(0)

    task = asyncio.create_task(stall())
    with pytest.raises(TimeoutError):
        async with LoopTimeout(0.01):
            await asyncio.sleep(3600)
    task.cancel()


async def test_an_event_loop_that_stands_still_does_not_make_the_store_away(backend: Backend) -> None:
    """As where the machine is busy, or a large body is parsed: the answer is there, in the socket, once it goes on."""
    async with await TenantStore.connect(backend.url) as store:
        cache = EntitlementCache(store)
        await cache.start()
        for seconds in (0.4, 1.5):
            asked = [asyncio.create_task(store.execute("PING")) for _ in range(8)]
            await asyncio.sleep(0.01)
            for _ in range(3):
                asked.append(asyncio.create_task(store.execute("DBSIZE")))
            await asyncio.sleep(0)
            time.sleep(seconds)
            assert len(await asyncio.gather(*asked)) == 11
            await asyncio.sleep(0.3)
            assert store.servers.problem == "" and cache.healthy == (True, "ok")
        await cache.aclose()


async def test_a_loop_that_is_always_a_little_late_does_not_make_the_store_away(backend: Backend) -> None:
    """As where many requests are under way: no timer is late by much, and an answer on a new connection takes long."""

    async def busy() -> None:
        while True:
            time.sleep(0.03)
            await asyncio.sleep(0)

    async with await TenantStore.connect(backend.url) as store:
        task = asyncio.create_task(busy())
        assert len(await asyncio.gather(*(store.execute("PING") for _ in range(32)))) == 32
        assert store.servers.problem == ""
        task.cancel()
