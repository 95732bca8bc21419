"""What is booked, given back and held, also while the store is away."""

import asyncio
import os
import signal
import time

import pytest

from policies.errors import InvalidRequest, Unavailable
from tenants.metering.admission import Admission
from tenants.metering.lease import Lease
from tenants.metering.settlement import Settlement, State, today
from tenants.metering.usage import read_days, read_usage
from tenants.records import keyspace
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend, until
from tests.tenants.requests import MODEL, attempt, settlement, tenant, total


@pytest.mark.parametrize("failure", [InvalidRequest, asyncio.CancelledError, GeneratorExit])
async def test_a_failed_request_releases_its_lease_and_gets_its_tokens_and_images_back(
    store: TenantStore, admission: Admission, failure: type[BaseException]
) -> None:
    own = tenant(concurrency=1, tpm=100, quota_tokens_day=100, quota_images_day=5)
    for _ in range(3):
        with pytest.raises(failure):
            async with admission.admit(own, model=MODEL, tokens=100, images=5):
                raise failure("no")
        assert await admission.drain()
    counters = await total(store)
    assert (counters["requests"], counters["images"], counters["tokens_in"], counters["tokens_reserved"]) == (
        3,
        0,
        0,
        0,
    )


async def test_settlement_books_what_was_used_and_returns_the_rest(store: TenantStore, admission: Admission) -> None:
    own = tenant(tpm=100)
    async with admission.admit(own, model=MODEL, tokens=90) as lease:
        assert (await total(store))["tokens_reserved"] == 90
        lease.settle(tokens_in=5, tokens_out=1)
        lease.settle(tokens_in=5, tokens_out=12)
    assert await admission.drain()
    usage = (await read_days(store, "acme", 1))[0]
    assert (usage.total["tokens_in"], usage.total["tokens_out"], usage.total["tokens_reserved"]) == (5, 12, 0)
    assert usage.by_model[MODEL] == usage.total == usage.sold[0].counts
    assert (await read_usage(store, "acme", today()[:7]))[0].total == usage.total
    assert (await admission.remaining(own))["tpm"] == 83
    assert (await store.execute("GET", f"{keyspace.request('acme')}:{lease.id}")).startswith(b"settled")


async def test_without_a_word_of_settlement_what_was_reserved_is_booked(
    store: TenantStore, admission: Admission
) -> None:
    async with admission.admit(tenant(), model=MODEL, images=2):
        pass
    assert await admission.drain()
    assert (await total(store))["images"] == 2


async def test_a_settlement_sent_twice_counts_once(store: TenantStore, admission: Admission) -> None:
    lease = await admission.admit(tenant(), model=MODEL, tokens=50).__aenter__()
    again = Settlement(lease.sold, lease.id, int(time.time()), State.ADMITTED, 1, 0, 10, 20, sent_at=time.time())
    for _ in range(3):
        admission.settler.put(again)
        assert await admission.drain()
    counters = await total(store)
    assert (counters["requests"], counters["tokens_in"], counters["tokens_out"]) == (1, 10, 20)


async def test_a_held_settlement_sent_twice_counts_once_with_or_without_a_lease(
    store: TenantStore, admission: Admission
) -> None:
    lease = await admission.admit(tenant(), model=MODEL, tokens=50).__aenter__()
    for lease_id in (lease.id, "ab" * 12):
        for _ in range(3):
            admission.settler.put(Settlement(lease.sold, lease_id, int(time.time()), State.HELD, 1, 2, 10, 20))
            assert await admission.drain()
    counters = await total(store)
    assert (counters["requests"], counters["images"], counters["tokens_out"], counters["tokens_reserved"]) == (
        2,
        4,
        40,
        0,
    )


async def test_a_booking_that_the_store_lost_is_booked_at_settlement(store: TenantStore, admission: Admission) -> None:
    async with admission.admit(tenant(), model=MODEL, tokens=50) as lease:
        lease.settle(tokens_in=1, tokens_out=2)
        await store.execute("FLUSHALL")
    assert await admission.drain()
    counters = await total(store)
    assert (counters["requests"], counters["tokens_in"], counters["tokens_out"]) == (1, 1, 2)


async def test_while_the_store_is_away_local_limits_hold_and_usage_is_held_and_booked_on_return(
    backend: Backend,
) -> None:
    async with await TenantStore.connect(backend.url) as store:
        admission = Admission(store)
        own = tenant(rpm=10, concurrency=5)
        assert all([await attempt(admission, own, images=1) for _ in range(4)])
        running = await admission.admit(own, model=MODEL, images=1).__aenter__()
        assert await admission.drain()
        backend.kill()
        # The process counts what it admitted before the outage as well.
        results = [await attempt(admission, own, images=1) for _ in range(20)]
        assert results == [True] * 5 + [False] * 15
        assert (await admission.remaining(own))["rpm"] == 0
        await running.__aexit__(None, None, None)
        assert not await admission.drain(0.05)
        backend.start()
        assert await admission.drain(20.0)
        counters = await total(store)
        assert (counters["requests"], counters["images"], counters["tokens_reserved"]) == (10, 10, 0)
        assert await store.execute("ZCARD", keyspace.running("acme")) == 0
        await admission.aclose()


async def test_an_admission_whose_answer_was_lost_is_booked_once(backend: Backend) -> None:
    async with await TenantStore.connect(backend.url) as store:
        admission = Admission(store)
        os.kill(backend.pid, signal.SIGSTOP)
        try:
            # The server finds the command in its socket when it goes on, long after we gave up on it.
            async with admission.admit(tenant(), model=MODEL, tokens=50) as lease:
                lease.settle(tokens_in=1, tokens_out=2)
        finally:
            os.kill(backend.pid, signal.SIGCONT)
        assert await admission.drain(20.0)
        counters = await total(store)
        assert (counters["requests"], counters["tokens_in"], counters["tokens_reserved"]) == (1, 1, 0)
        await admission.aclose()


async def test_a_request_cancelled_while_it_is_admitted_leaves_no_lease(backend: Backend) -> None:
    async with await TenantStore.connect(backend.url) as store:
        admission = Admission(store)
        await attempt(admission, tenant())
        assert await admission.drain()
        os.kill(backend.pid, signal.SIGSTOP)
        try:
            task = asyncio.create_task(admission.admit(tenant(), model=MODEL, tokens=9).__aenter__())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        finally:
            os.kill(backend.pid, signal.SIGCONT)
        assert await admission.drain(20.0)
        assert await store.execute("ZCARD", keyspace.running("acme")) == 0
        counters = await total(store)
        assert (counters["requests"], counters["tokens_reserved"]) == (1, 0)
        await admission.aclose()


async def test_after_the_grace_nothing_is_admitted(backend: Backend) -> None:
    async with await TenantStore.connect(backend.url) as store:
        admission = Admission(store, stale_grace_s=0.0)
        backend.kill()

        async def closed() -> bool:
            try:
                lease: Lease = await admission.admit(tenant(), model=MODEL).__aenter__()
            except Unavailable:
                return True
            await lease.__aexit__(None, None, None)
            return False

        await until(closed)
        await admission.aclose(0.0)


async def test_the_settlement_queue_is_bounded(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    async with await TenantStore.connect(backend.url) as store:
        admission = Admission(store)
        admission.settler._limit = 10
        backend.kill()
        for i in range(30):
            admission.settler.put(settlement(i, requests=1))
        assert len(admission.settler) == 10
        assert len(admission.settler._ended["acme"]) == 10
        assert "queue is full" in caplog.text
        backend.start()
        assert await admission.drain(20.0)
        assert (await total(store))["requests"] == 10
        assert not admission.settler._ended
        await admission.aclose()


async def test_tokens_that_an_estimate_reserved_come_back_to_tenant_and_key(admission: Admission) -> None:
    own = tenant(tpm=1000, quota_tokens_day=1000, key={"tpm": 1000})
    for _ in range(5):  # together they reserve far more than the limit
        async with admission.admit(own, model=MODEL, tokens=900) as lease:
            lease.settle(tokens_in=3, tokens_out=7)
        assert await admission.drain()
    assert await admission.remaining(own) == {"tpm": 950, "quota_tokens_day": 950}
