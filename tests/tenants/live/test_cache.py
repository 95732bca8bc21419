"""What a key resolves to, and how edits reach every replica."""

from __future__ import annotations

import hashlib
import logging
import time
from functools import partial
from typing import Any

import pytest

from policies.errors import ServiceError, Unauthenticated, Unavailable
from tenants.admin import installation
from tenants.admin.admin import TenantAdmin
from tenants.live.cache import EntitlementCache
from tenants.records import keyspace
from tenants.records.fields import iso
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend, populate, refused, until


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


class Unseen(str):
    """A secret that fails the test where it is compared, or looked up, as it is."""

    def _compared(self, *_: object) -> Any:
        raise AssertionError("a secret was compared")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _compared
    __hash__ = _compared  # type: ignore[assignment]


async def test_a_key_is_found_by_the_hash_of_its_whole_secret_and_compared_with_none(
    admin: TenantAdmin, store: TenantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compared is a hash, so how long an answer takes says nothing about a secret that is nearly right."""
    key = await populate(admin)
    digest = hashlib.sha256(key.encode()).hexdigest()
    asked: list[str] = []
    original = TenantStore.hashes

    async def noted(self: TenantStore, *keys: str) -> Any:
        asked.extend(name for name in keys if name.startswith(keyspace.APIKEY))
        return await original(self, *keys)

    monkeypatch.setattr(TenantStore, "hashes", noted)
    cache = EntitlementCache(store, ttl_s=60.0)
    for _ in range(2):  # from the store, then from memory
        assert (await cache.authenticate(Unseen(key))).tenant == "acme"
    assert asked == [f"apikey:{digest}"]
    wrong = [key[:-1], key + "x", key[:-1] + chr(ord(key[-1]) ^ 1), key.swapcase(), f" {key}", digest, digest[:12]]
    for secret in wrong:
        for _ in range(2):
            with pytest.raises(Unauthenticated):
                await cache.authenticate(Unseen(secret))
    assert asked[1:] == [f"apikey:{hashlib.sha256(secret.encode()).hexdigest()}" for secret in wrong]
    await cache.aclose()


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


async def code_of(cache: EntitlementCache, key: str) -> str | None:
    try:
        await cache.authenticate(key)
    except ServiceError as error:
        return error.code
    return None


async def test_a_flushed_store_is_an_outage_and_calls_no_key_wrong(
    admin: TenantAdmin, cache: EntitlementCache, store: TenantStore
) -> None:
    key = await populate(admin)
    await cache.authenticate(key)
    assert await code_of(cache, "sk-acme-unknown") == "invalid_api_key"
    await store.execute("FLUSHALL")

    async def out_of_order() -> bool:
        return await code_of(cache, key) == "store_empty"

    await until(out_of_order)
    with pytest.raises(Unavailable):
        await cache.authenticate("sk-acme-unknown")
    assert not cache.healthy[0] and "tenants init" in cache.healthy[1]
    await installation.create_secrets(store)

    async def mended() -> bool:
        return cache.healthy[0] and await code_of(cache, key) == "invalid_api_key"

    await until(mended)


async def test_an_empty_store_is_an_outage_also_to_a_gateway_that_hears_of_no_edits(store: TenantStore) -> None:
    await store.execute("FLUSHALL")
    unstarted = EntitlementCache(store)
    assert await code_of(unstarted, "sk-a-b") == "store_empty"
    await installation.mark(store)
    assert await code_of(unstarted, "sk-a-b") == "invalid_api_key"
    await store.execute("FLUSHALL")
    assert await code_of(unstarted, "sk-a-c") == "store_empty"
    await unstarted.aclose()


async def test_edits_are_noticed_by_the_time_to_live_without_announcements(
    admin: TenantAdmin, store: TenantStore
) -> None:
    key = await populate(admin)
    unstarted = EntitlementCache(store, ttl_s=0.05)
    await unstarted.authenticate(key)
    await admin.revoke_key(key)
    await until(lambda: refused(unstarted, key, "invalid_api_key"))
    await unstarted.aclose()
