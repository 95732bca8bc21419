"""Junk in the records: never a crash, never another tenant, never more rights than before."""

from __future__ import annotations

import random
import time

import pytest

from policies.errors import NotEntitled, Unauthenticated, Unavailable
from tenants.admin.admin import TenantAdmin
from tenants.live.cache import EntitlementCache
from tenants.live.entitlements import Entitlements
from tenants.metering.admission import Admission
from tenants.records import keyspace
from tenants.records.schema import LIMIT_FIELDS, RecordError
from tenants.store.store import TenantStore
from tests.tenants.conftest import populate

ROUNDS = 150
NUMBERS = ("utility", "labels", "digits", "weight", "focus_max", *LIMIT_FIELDS)
JUNK = [
    b"",
    b"\x00",
    b"\xff\xfe",
    b"nan",
    b"inf",
    b"-1",
    b"1e999",
    b"0x10",
    b"9" * 400,
    b"None",
    b"true true",
    b"{}",
    b"x" * 10**6,
]
"""No number, or one out of every range."""


async def outcome(store: TenantStore, key: str) -> Entitlements | str:
    """What a gateway that has never seen the key makes of it; only a refusal may be raised."""
    try:
        return await EntitlementCache(store).authenticate(key)
    except (NotEntitled, Unauthenticated) as error:
        return str(error.code)


async def restore(store: TenantStore, record: str, fields: dict[bytes, bytes]) -> None:
    await store.execute("DEL", record)
    await store.execute("HSET", record, *(part for pair in fields.items() for part in pair))


@pytest.mark.parametrize("kind", ["tier", "tenant", "apikey"])
async def test_junk_in_a_numeric_field_refuses_its_tenant_and_no_other(
    admin: TenantAdmin, store: TenantStore, kind: str
) -> None:
    victim, record = await prepared(admin, kind)
    bystander = await bystander_of(admin)
    before = dict((await store.hashes(record))[0])
    for field in LIMIT_FIELDS if kind == "apikey" else NUMBERS:
        for junk in JUNK:
            await store.execute("HSET", record, field, junk)
            assert await outcome(store, victim) == "entitlements_invalid", (field, junk[:20])
            await restore(store, record, before)
    assert isinstance(await outcome(store, victim), Entitlements)
    assert isinstance(await outcome(store, bystander), Entitlements)


@pytest.mark.parametrize("kind", ["tier", "tenant", "apikey"])
async def test_binary_junk_anywhere_never_crashes_and_never_raises_rights(
    admin: TenantAdmin, store: TenantStore, kind: str
) -> None:
    victim, record = await prepared(admin, kind)
    bystander = await bystander_of(admin)
    granted = await outcome(store, victim)
    assert isinstance(granted, Entitlements)
    before = dict((await store.hashes(record))[0])
    rng = random.Random(7)
    for _ in range(ROUNDS):
        match rng.randrange(4):
            case 0:
                await store.execute(
                    "HSET",
                    record,
                    rng.choice([*before, rng.randbytes(8)]),
                    b"\xfe" + rng.randbytes(rng.choice([0, 9, 5000])),
                )
            case 1:
                await store.execute("HSET", record, b"\xfe" + rng.randbytes(12), b"1")
            case 2:
                await store.execute("DEL", record)
                await store.execute(
                    *rng.choice([("SET", record, "x"), ("RPUSH", record, "x"), ("ZADD", record, 1, "x")])
                )
            case _:  # a field that a record cannot be without
                await store.execute("HDEL", record, {"tier": "utility", "tenant": "tier", "apikey": "tenant"}[kind])
        assert isinstance(await outcome(store, victim), str)
        await restore(store, record, before)
    assert await outcome(store, victim) == granted
    assert isinstance(await outcome(store, bystander), Entitlements)
    assert [problem.key for problem in await admin.check()] == []


FULL = {**dict.fromkeys(LIMIT_FIELDS, "1000000"), "tpm": "unlimited"}
TERMS = {
    "labels": "2",
    "digits": "1",
    "logprobs": "false",
    "lower_utility": "false",
    "focus_max": "0.5",
    "focus_allow": "sky,a b",
    "models": "m",
}
ALL_FIELDS = {
    "tier": {**FULL, **TERMS, "weight": "2", "utility:m": "0.5"},
    "tenant": {**FULL, **TERMS, "utility": "0.8", "utility:m": "0.4", "focus_locked": "true", "project": "team"},
    "apikey": {**FULL, "scopes": "model:m", "expires_at": "2100-01-01", "project": "team"},
}


@pytest.mark.parametrize("kind", ["tier", "tenant", "apikey"])
async def test_a_field_that_gets_lost_refuses_its_tenant_until_an_admin_sets_or_removes_it(
    admin: TenantAdmin, store: TenantStore, kind: str
) -> None:
    """What is absent is allowed: a limit, an expiry or a revocation must not go by losing its field."""
    victim, record = await prepared(admin, kind)
    await edit(admin, victim, kind, ALL_FIELDS[kind])
    before = dict((await store.hashes(record))[0])
    granted = await outcome(store, victim)
    assert isinstance(granted, Entitlements)
    for field in set(before) - {b"sealed"}:
        await store.execute("HDEL", record, field)
        assert await outcome(store, victim) == "entitlements_invalid", field
        assert [(p.key, p.field) for p in await admin.check()] == [(record, field.decode())]
        with pytest.raises(RecordError, match="was lost"):  # an edit of another field does not approve of the loss
            await edit(
                admin, victim, kind, {"label" if kind == "apikey" else "weight": "3"} if field != b"weight" else {}
            )
        await restore(store, record, before)
    for field in ALL_FIELDS[kind]:
        await store.execute("HDEL", record, field)
        await edit(admin, victim, kind, {field: None})
        assert isinstance(await outcome(store, victim), Entitlements), field


async def test_a_revoked_key_stays_refused_without_its_status(admin: TenantAdmin, store: TenantStore) -> None:
    victim, record = await prepared(admin, "apikey")
    await admin.revoke_key(victim)
    await store.execute("HDEL", record, "status")
    assert await outcome(store, victim) == "entitlements_invalid"
    await admin.revoke_key(victim)
    assert await outcome(store, victim) == "invalid_api_key"


async def test_without_its_seal_a_record_is_taken_as_it_is(admin: TenantAdmin, store: TenantStore) -> None:
    """As one is that an admin writes with redis-cli."""
    victim, record = await prepared(admin, "tenant")
    granted = await outcome(store, victim)
    await store.execute("HDEL", record, "sealed")
    after = await outcome(store, victim)
    assert isinstance(granted, Entitlements) and isinstance(after, Entitlements)
    assert (after.tier, after.limits) == (granted.tier, granted.limits)


async def edit(admin: TenantAdmin, secret: str, kind: str, changes: dict[str, str | None]) -> None:
    match kind:
        case "tier":
            await admin.set_tier("silver", changes)
        case "tenant":
            await admin.set_tenant("acme", changes)
        case _:
            await admin.set_key(secret, changes)


async def test_a_key_that_points_at_another_tenants_name_in_disguise_gets_nothing(
    admin: TenantAdmin, store: TenantStore
) -> None:
    victim, record = await prepared(admin, "apikey")
    await bystander_of(admin)
    for name in (b"bystander ", b"bystander\x00", b"Bystander", b"bystander}", b"{bystander}", b"*", b"bystander:x"):
        await store.execute("HSET", record, "tenant", name)
        assert await outcome(store, victim) == "entitlements_invalid"


async def prepared(admin: TenantAdmin, kind: str) -> tuple[str, str]:
    """A key of `acme`, and the record of a kind behind it."""
    key = await populate(admin)
    await admin.create_project("team", {"rpm": "1000"})
    records = {"tier": keyspace.tier("silver"), "tenant": keyspace.tenant("acme")}
    return key, records.get(kind, keyspace.apikey(keyspace.key_digest(key)))


async def bystander_of(admin: TenantAdmin) -> str:
    await admin.create_tier("other", {"utility": "0.5"})
    await admin.create_tenant("bystander", tier="other")
    return (await admin.create_key("bystander"))[0]


COUNTERS = (
    "window:{{acme}}:requests",
    "window:{{acme}}:tokens",
    "running:{{acme}}",
    "reserved:{{acme}}",
    "usage:{{acme}}:{day}",
)


@pytest.mark.parametrize("counter", COUNTERS)
async def test_a_counter_that_is_none_stops_its_tenant_and_no_other(
    admin: TenantAdmin, store: TenantStore, counter: str
) -> None:
    secret = await populate(admin, rpm="5", tpm="100", concurrency="2", quota_requests_day="3")
    bystander = await bystander_of(admin)
    cache, admission = EntitlementCache(store), Admission(store)
    own, other = await cache.authenticate(secret), await cache.authenticate(bystander)
    await store.execute("SET", counter.format(day=time.strftime("%Y-%m-%d", time.gmtime())), "junk")
    for _ in range(4):
        with pytest.raises(Unavailable):
            async with admission.admit(own, model="m", tokens=1):
                pass
        async with admission.admit(other, model="m", tokens=1):
            pass
    await admission.aclose()
