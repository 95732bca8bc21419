import asyncio
import logging
import os
import signal
import time
from functools import partial

import pytest

from policies.errors import NotEntitled, Unauthenticated, Unavailable
from tenants import keyspace
from tenants.admin import TenantAdmin
from tenants.cache import EntitlementCache
from tenants.fields import iso
from tenants.store import TenantStore
from tests.tenants.conftest import Backend, populate, until


async def refused(cache: EntitlementCache, key: str, code: str) -> bool:
    try:
        await cache.authenticate(key)
    except (Unauthenticated, NotEntitled) as error:
        return error.code == code
    return False


async def test_a_key_resolves_to_its_merged_entitlements(admin: TenantAdmin, cache: EntitlementCache) -> None:
    key = await populate(admin, name="Acme", rpm="60", **{"focus:seg:pedestrian": "0.9"})
    own = await cache.authenticate(key)
    assert (own.tenant, own.name, own.status, own.tier.name, own.tier.utility) == (
        "acme",
        "Acme",
        "active",
        "silver",
        0.9,
    )
    assert own.limits.rpm == 60
    assert own.standing_focus == {"seg": {"pedestrian": 0.9}}
    assert own.key_prefix == f"sk-acme-…{key[-4:]}"
    assert await cache.authenticate(key) is own


@pytest.mark.parametrize("key", ["", "sk-none", "x" * 100_000, "\udc80", "sk-ünï"])
async def test_a_missing_or_unknown_key_is_refused_and_not_echoed(cache: EntitlementCache, key: str) -> None:
    for _ in range(2):
        with pytest.raises(Unauthenticated) as caught:
            await cache.authenticate(key)
        assert caught.value.code == "invalid_api_key"
        assert not key or key not in caught.value.message


async def test_a_raw_hset_by_another_client_takes_effect_with_a_new_version(
    admin: TenantAdmin, cache: EntitlementCache, shared_backend: Backend
) -> None:
    key = await populate(admin)
    await admin.create_tier("gold", {"utility": "1.0"})
    before = await cache.authenticate(key)
    async with await TenantStore.connect(shared_backend.url, timeout_s=5.0) as other:
        # The time-to-live of this cache is a minute: what is seen comes by announcement.
        await other.execute("HSET", "tenant:acme", "tier", "gold")

        async def promoted() -> bool:
            return (await cache.authenticate(key)).tier.name == "gold"

        await until(promoted)
        promoted_version = (await cache.authenticate(key)).version
        assert promoted_version != before.version
        await other.execute("HSET", "tier:gold", "utility", "0.95")

        async def lowered() -> bool:
            return (await cache.authenticate(key)).tier.utility == 0.95

        await until(lowered)
        assert (await cache.authenticate(key)).version != promoted_version


async def test_a_created_key_works_although_it_was_refused_before(admin: TenantAdmin, cache: EntitlementCache) -> None:
    await populate(admin)
    secret = "sk-acme-chosen-by-an-admin"
    assert await refused(cache, secret, "invalid_api_key")
    await admin._store.execute("HSET", keyspace.apikey(keyspace.key_digest(secret)), "tenant", "acme")

    async def known() -> bool:
        return not await refused(cache, secret, "invalid_api_key")

    await until(known)


async def test_a_revoked_key_is_refused_by_every_replica(
    admin: TenantAdmin, cache: EntitlementCache, shared_backend: Backend
) -> None:
    key = await populate(admin)
    async with await TenantStore.connect(shared_backend.url, timeout_s=5.0) as store:
        second = EntitlementCache(store, ttl_s=60.0)
        await second.start()
        for replica in (cache, second):
            await replica.authenticate(key)
        await admin.revoke_key(key)
        for replica in (cache, second):
            await until(partial(refused, replica, key, "invalid_api_key"))
        await second.aclose()


async def test_a_deleted_key_is_refused(admin: TenantAdmin, cache: EntitlementCache) -> None:
    key = await populate(admin)
    await cache.authenticate(key)
    await admin._store.execute("DEL", keyspace.apikey(keyspace.key_digest(key)))
    await until(lambda: refused(cache, key, "invalid_api_key"))


async def test_a_key_that_runs_out_while_it_is_cached_is_refused(admin: TenantAdmin, cache: EntitlementCache) -> None:
    await populate(admin)
    key, _ = await admin.create_key("acme", expires_at=float(int(time.time()) + 2))
    assert (await cache.authenticate(key)).key_expires_at is not None
    await until(lambda: refused(cache, key, "invalid_api_key"))
    old, record = await admin.create_key("acme")
    await admin._store.execute("HSET", keyspace.apikey(record.digest), "expires_at", iso(time.time() - 1))
    assert await refused(cache, old, "invalid_api_key")


async def test_a_suspended_tenant_is_refused_until_it_is_activated(admin: TenantAdmin, cache: EntitlementCache) -> None:
    key = await populate(admin)
    await cache.authenticate(key)
    await admin.set_tenant("acme", {"status": "suspended"})
    await until(lambda: refused(cache, key, "tenant_suspended"))
    await admin.set_tenant("acme", {"status": "active"})

    async def active() -> bool:
        return not await refused(cache, key, "tenant_suspended")

    await until(active)


@pytest.mark.parametrize(
    ("command", "key", "field"),
    [
        (("HSET", "tier:silver", "utility", "abc"), "tier:silver", "utility"),
        (("HSET", "tenant:acme", "rpm", "\udcff"), "tenant:acme", "rpm"),
        (("HSET", "tenant:acme", "colour", "red"), "tenant:acme", "colour"),
        (("HSET", "tenant:acme", "tier", "platinum"), "tier:platinum", ""),
        (("DEL", "tier:silver"), "tier:silver", ""),
        (("DEL", "tenant:acme"), "tenant:acme", ""),
        (("SET", "tier:silver", "text"), "tier:silver", ""),
    ],
)
async def test_a_broken_record_fails_closed_for_its_tenant_alone_and_is_logged(
    admin: TenantAdmin,
    cache: EntitlementCache,
    store: TenantStore,
    caplog: pytest.LogCaptureFixture,
    command: tuple[str, ...],
    key: str,
    field: str,
) -> None:
    secret = await populate(admin)
    await admin.create_tier("other", {"utility": "0.5"})
    await admin.create_tenant("bystander", tier="other")
    bystander = (await admin.create_key("bystander"))[0]
    await cache.authenticate(secret)
    with caplog.at_level(logging.DEBUG):
        await store.execute(*(part.encode("utf-8", "surrogateescape") for part in command))
        await until(lambda: refused(cache, secret, "entitlements_invalid"))
        for _ in range(3):
            assert await refused(cache, secret, "entitlements_invalid")
        assert (await cache.authenticate(bystander)).tenant == "bystander"
    reports = [record.getMessage() for record in caplog.records if "entitlements_invalid" in record.getMessage()]
    assert len(reports) == 1 and key in reports[0] and repr(field) in reports[0]
    assert secret not in caplog.text and bystander not in caplog.text


async def test_a_mended_record_works_again(admin: TenantAdmin, cache: EntitlementCache, store: TenantStore) -> None:
    key = await populate(admin)
    await store.execute("HSET", "tier:silver", "utility", "abc")
    assert await refused(cache, key, "entitlements_invalid")
    await store.execute("HSET", "tier:silver", "utility", "0.8")

    async def mended() -> bool:
        return not await refused(cache, key, "entitlements_invalid")

    await until(mended)


async def test_a_flushed_store_is_noticed(admin: TenantAdmin, cache: EntitlementCache, store: TenantStore) -> None:
    key = await populate(admin)
    await cache.authenticate(key)
    await store.execute("FLUSHALL")
    await until(lambda: refused(cache, key, "invalid_api_key"))


async def test_edits_are_noticed_by_the_time_to_live_without_announcements(
    admin: TenantAdmin, store: TenantStore
) -> None:
    key = await populate(admin)
    unstarted = EntitlementCache(store, ttl_s=0.05)
    await unstarted.authenticate(key)
    await admin.revoke_key(key)
    await until(lambda: refused(unstarted, key, "invalid_api_key"))
    await unstarted.aclose()


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
        monkeypatch.setattr("tenants.cache.REREADS_PER_S", rate)
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
    monkeypatch.setattr("tenants.cache.TOUCH_FLUSH_S", 0.01)
    key = await populate(admin)
    cache = EntitlementCache(store, ttl_s=60.0)
    await cache.start()
    version = (await cache.authenticate(key)).version

    async def noted() -> bool:
        return next(iter((await admin.keys("acme")).values())).last_used is not None  # type: ignore[union-attr]

    await until(noted)
    assert (await cache.authenticate(key)).version == version
    await cache.aclose()


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
