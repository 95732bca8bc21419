"""How rarely the cache asks the store, and how little it keeps."""

from __future__ import annotations

import asyncio

import pytest

from tenants.admin.admin import TenantAdmin
from tenants.live.cache import EntitlementCache
from tenants.records import keyspace
from tenants.store.store import TenantStore
from tests.tenants.conftest import populate, refused, until


async def test_many_callers_of_one_key_ask_the_store_once_and_may_hang_up(
    admin: TenantAdmin, store: TenantStore
) -> None:
    key = await populate(admin)
    unstarted = EntitlementCache(store, ttl_s=60.0)
    before = await _commands(store)
    tasks = [asyncio.create_task(unstarted.authenticate(key)) for _ in range(50)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert len({id(answer) for answer in answers[1:]}) == 1
    assert await _commands(store) - before == 3
    await unstarted.aclose()


async def test_a_key_of_a_known_form_is_resolved_in_one_round_trip_whatever_it_claims(
    admin: TenantAdmin, store: TenantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [await populate(admin, name) for name in ("acme", "a-b.c", "other")]
    trips = 0
    original = TenantStore.pipeline

    async def counted(self: TenantStore, commands: object) -> object:
        nonlocal trips
        trips += 1
        return await original(self, commands)  # type: ignore[arg-type]

    monkeypatch.setattr(TenantStore, "pipeline", counted)
    cache = EntitlementCache(store, ttl_s=60.0)
    assert (await cache.authenticate(keys[0])).tenant == "acme" and trips == 2  # no tier was seen yet
    assert (await cache.authenticate(keys[1])).tenant == "a-b.c" and trips == 3
    # A key that names another tenant is still its own tenant's: the name only says what to read ahead.
    secret = keyspace.new_secret("acme")
    await store.execute("HSET", keyspace.apikey(keyspace.key_digest(secret)), "tenant", "other")
    assert (await cache.authenticate(secret)).tenant == "other"
    assert await refused(cache, keyspace.new_secret("acme"), "invalid_api_key")
    await cache.aclose()


async def _commands(store: TenantStore) -> int:
    stats = (await store.execute("INFO", "commandstats")).get("cmdstat_hgetall")
    return int(stats["calls"]) if stats else 0


async def test_many_keys_are_not_read_again_more_often_than_the_store_should_be_asked(
    admin: TenantAdmin, store: TenantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await populate(admin)
    keys = [(await admin.create_key("acme"))[0] for _ in range(3)]
    cache = EntitlementCache(store, ttl_s=0.01)
    await cache.start()
    reads = []
    for rate in (1e9, 1e-3):
        monkeypatch.setattr("tenants.live.cache.REREADS_PER_S", rate)
        for key in keys:
            await cache.authenticate(key)
        await asyncio.sleep(0.05)
        before = await _commands(store)
        for key in keys:
            await cache.authenticate(key)
        reads.append(await _commands(store) - before)
    assert reads[0] > 0 and reads[1] == 0
    await admin.revoke_key(keys[0])  # an edit counts all the same
    await until(lambda: refused(cache, keys[0], "invalid_api_key"))
    await cache.aclose()


async def test_the_cache_is_bounded(admin: TenantAdmin, store: TenantStore) -> None:
    await populate(admin)
    keys = [(await admin.create_key("acme"))[0] for _ in range(12)]
    small = EntitlementCache(store, ttl_s=60.0, capacity=8)
    for key in keys:
        await small.authenticate(key)
    for i in range(20):
        assert await refused(small, f"sk-unknown-{i}", "invalid_api_key")
    assert len(small._entries) == 8 and len(small._unknown) == 8
    assert len(small._sources) == 8 + 2  # the keys', their tenant and its tier
    terms = [entry.resolution.outcome for entry in small._entries.values()]
    assert len({id(own.tier) for own in terms}) == len({id(own.limits) for own in terms}) == 1  # type: ignore[union-attr]
    await small.aclose()


async def test_the_last_use_is_noted_without_a_new_version(
    admin: TenantAdmin, store: TenantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenants.live.cache.TOUCH_FLUSH_S", 0.01)
    key = await populate(admin)
    cache = EntitlementCache(store, ttl_s=60.0)
    await cache.start()
    version = (await cache.authenticate(key)).version

    async def noted() -> bool:
        return next(iter((await admin.keys("acme")).values())).last_used is not None  # type: ignore[union-attr]

    await until(noted)
    assert (await cache.authenticate(key)).version == version
    await cache.aclose()
