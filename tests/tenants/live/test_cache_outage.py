"""The cache while the store is away, cut off or hanging, and after."""

from __future__ import annotations

import os
import signal
import time

import pytest

from policies.errors import Unavailable
from tenants.admin.admin import TenantAdmin
from tenants.live.cache import EntitlementCache
from tenants.records import keyspace
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend, populate, refused, until


async def test_while_the_store_is_away_known_keys_go_on_and_unknown_ones_are_unavailable(backend: Backend) -> None:
    async with await TenantStore.connect(backend.url) as store:
        admin = TenantAdmin(store)
        key, unseen = await populate(admin), await populate(admin, "other")
        cache = EntitlementCache(store, ttl_s=0.01)
        await cache.start()
        assert cache.healthy == (True, "ok")
        before = await cache.authenticate(key)
        backend.kill()
        for _ in range(20):
            assert (await cache.authenticate(key)).version == before.version
            with pytest.raises(Unavailable) as caught:
                await cache.authenticate(unseen)
            assert caught.value.retry_after >= 1
        await until(lambda: not cache.healthy[0])
        assert "away" in cache.healthy[1] or "not announced" in cache.healthy[1]
        backend.start()
        await until(lambda: cache.healthy[0])
        assert (await cache.authenticate(unseen)).tenant == "other"
        await admin.set_tenant("acme", {"status": "suspended"})
        await until(lambda: refused(cache, key, "tenant_suspended"))
        await cache.aclose()


async def test_after_the_grace_everyone_is_unavailable_even_known_keys(backend: Backend) -> None:
    async with await TenantStore.connect(backend.url) as store:
        key = await populate(TenantAdmin(store))
        cache = EntitlementCache(store, ttl_s=0.01, stale_grace_s=0.0)
        await cache.start()
        await cache.authenticate(key)
        backend.kill()
        await until(lambda: not cache.healthy[0])

        async def closed() -> bool:
            try:
                await cache.authenticate(key)
            except Unavailable as error:
                return error.code == "store_unavailable"
            return False

        await until(closed)
        await cache.aclose()


async def test_an_idle_key_was_current_until_the_outage_began(backend: Backend) -> None:
    """The grace counts from the outage, not from a key's last use: announcements kept it current meanwhile."""
    async with await TenantStore.connect(backend.url) as store:
        key = await populate(TenantAdmin(store))
        cache = EntitlementCache(store, ttl_s=0.01, stale_grace_s=30.0)
        await cache.start()
        await cache.authenticate(key)
        digest = keyspace.key_digest(key)
        cache._entries[digest].fetched_at -= 1000.0
        await until(lambda: cache._feed.alive_at > time.monotonic() - 1.0)
        backend.kill()
        await until(lambda: not cache.healthy[0])
        assert (await cache.authenticate(key)).tenant == "acme"
        await cache.aclose()


async def test_an_edit_made_while_the_feed_was_down_is_not_missed(backend: Backend) -> None:
    async with await TenantStore.connect(backend.url) as store:
        admin = TenantAdmin(store)
        key = await populate(admin)
        cache = EntitlementCache(store, ttl_s=3600.0)
        await cache.start()
        await cache.authenticate(key)
        # Only the announcing connection is cut; the edit happens before it is back.
        for client in await store.execute("CLIENT LIST"):
            if "t" in client["flags"]:
                await store.pipeline([("CLIENT", "KILL", "ID", client["id"]), ("HSET", "tenant:acme", "rpm", "7")])

        async def seen() -> bool:
            return (await cache.authenticate(key)).limits.rpm == 7

        await until(seen)
        await cache.aclose()


async def test_a_server_that_hangs_is_noticed_and_healed(backend: Backend) -> None:
    async with await TenantStore.connect(backend.url) as store:
        key = await populate(TenantAdmin(store))
        cache = EntitlementCache(store, ttl_s=0.01)
        await cache.start()
        await cache.authenticate(key)
        os.kill(backend.pid, signal.SIGSTOP)
        try:
            await until(lambda: not cache.healthy[0])
            assert (await cache.authenticate(key)).tenant == "acme"
        finally:
            os.kill(backend.pid, signal.SIGCONT)
        await until(lambda: cache.healthy[0])
        await cache.aclose()


async def test_starting_while_the_store_is_away_heals_by_itself(backend: Backend) -> None:
    async with await TenantStore.connect(backend.url) as store:
        key = await populate(TenantAdmin(store))
        backend.kill()
        cache = EntitlementCache(store, ttl_s=60.0)
        await cache.start()
        assert not cache.healthy[0]
        backend.start()
        await until(lambda: cache.healthy[0])
        assert (await cache.authenticate(key)).tenant == "acme"
        await cache.aclose()
