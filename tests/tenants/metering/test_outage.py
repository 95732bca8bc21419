"""A store that answers, but not well: out of memory, read-only, slow. Known keys go on, nothing is lost, all heals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from policies.errors import Unavailable
from tenants.admin.admin import TenantAdmin
from tenants.live.cache import EntitlementCache
from tenants.metering.admission import Admission
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend, populate, until
from tests.tenants.requests import attempt, tenant, total


class SlowProxy:
    """A TCP proxy that holds every answer of the server for `delay` seconds."""

    def __init__(self) -> None:
        self.delay = 0.0

    @asynccontextmanager
    async def before(self, url: str) -> AsyncIterator[str]:
        """Stand before the server at `url`; the URL to use instead."""
        port = urlsplit(url).port
        assert port is not None

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            back, forth = await asyncio.open_connection("127.0.0.1", port)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, forth, slow=False))
                    group.create_task(self._pump(back, writer, slow=True))
            except* OSError:
                pass
            finally:
                writer.close()
                forth.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            yield url.replace(f":{port}", f":{server.sockets[0].getsockname()[1]}")
        finally:
            server.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
        while data := await reader.read(65536):
            if slow:
                await asyncio.sleep(self.delay)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


async def test_a_store_that_is_slow_by_two_seconds_holds_up_one_round_of_requests_and_no_other(
    backend: Backend,
) -> None:
    proxy = SlowProxy()
    async with proxy.before(backend.url) as url, await TenantStore.connect(url, timeout_s=0.5) as store:
        async with await TenantStore.connect(backend.url, timeout_s=5.0) as direct:
            key = await populate(TenantAdmin(direct))
            cache = EntitlementCache(store, ttl_s=0.01)
            await cache.start()
            own = await cache.authenticate(key)
            admission = Admission(store)
            assert await attempt(admission, own) and await admission.drain()
            proxy.delay = 2.0
            assert await attempt(admission, own)  # waits for the timeout, and opens the breaker
            for _ in range(200):
                with pytest.raises(Unavailable) as caught:
                    await store.execute("PING")
                assert caught.value.__cause__ is None  # the breaker's own answer: nobody waited
                assert await attempt(admission, await cache.authenticate(key))
            proxy.delay = 0.0
            await until(lambda: cache.healthy[0])
            assert await admission.drain(20.0)
            assert (await total(direct))["requests"] == 202
            await admission.aclose()
            await cache.aclose()


async def test_a_new_connection_may_take_longer_than_an_answer(backend: Backend) -> None:
    """A burst of requests opens connections, each with several round trips before its first answer."""
    proxy = SlowProxy()
    async with proxy.before(backend.url) as url, await TenantStore.connect(url, timeout_s=0.5) as store:
        proxy.delay = 0.2
        assert len(await asyncio.gather(*(store.execute("PING") for _ in range(8)))) == 8
        assert store.servers.problem == ""


@pytest.mark.parametrize("state", ["read-only", "write errors"])
async def test_a_store_that_refuses_to_count_loses_nothing(backend: Backend, state: str) -> None:
    async with await TenantStore.connect(backend.url) as store:
        admission = Admission(store)
        own = tenant(rpm=50)
        assert await attempt(admission, own) and await admission.drain()
        if state == "read-only":
            await store.execute("REPLICAOF", "127.0.0.1", "1")
        else:  # no replica to write to, as in a minority
            await store.execute("CONFIG", "SET", "min-replicas-to-write", "1")
        # Beyond what a settlement that can never be booked is tried.
        assert all([await attempt(admission, own, images=1) for _ in range(20)])
        assert "refuses to count" in store.servers.problem
        assert not await attempt(admission, tenant(rpm=15))  # local limits hold
        await asyncio.sleep(1.5)
        if state == "read-only":
            await store.execute("REPLICAOF", "NO", "ONE")
        else:
            await store.execute("CONFIG", "SET", "min-replicas-to-write", "0")
        assert await admission.drain(20.0)
        counters = await total(store)
        assert (counters["requests"], counters["images"]) == (21, 20)
        assert store.servers.problem == ""
        await admission.aclose()


async def test_a_store_that_is_out_of_memory_loses_nothing(backend: Backend) -> None:
    async with await TenantStore.connect(backend.url) as store:
        key = await populate(TenantAdmin(store))
        cache = EntitlementCache(store, ttl_s=0.01)
        await cache.start()
        admission = Admission(store)
        await store.execute("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(Unavailable):
            await store.execute("SET", "x", "y")
        for _ in range(20):
            assert await attempt(admission, await cache.authenticate(key), images=1)
        await store.execute("CONFIG", "SET", "maxmemory", "0")
        assert await admission.drain(20.0)
        counters = await total(store)
        assert (counters["requests"], counters["images"]) == (20, 20)
        await admission.aclose()
        await cache.aclose()


async def test_after_the_grace_a_client_is_told_why(backend: Backend) -> None:
    async with await TenantStore.connect(backend.url) as store:
        admission = Admission(store, stale_grace_s=0.05)
        backend.kill()
        await attempt(admission, tenant())

        async def closed() -> bool:
            try:
                return not await attempt(admission, tenant())
            except Unavailable as error:
                return "has been away for over 0.05 s" in error.message and error.retry_after >= 1

        await until(closed)
        await admission.aclose(0.0)
