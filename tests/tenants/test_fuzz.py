"""Junk in the records: never a crash, never another tenant, never more rights than before."""

from __future__ import annotations

import random

import pytest

from policies.errors import NotEntitled, Unauthenticated
from tenants import keyspace
from tenants.admin import TenantAdmin
from tenants.cache import EntitlementCache
from tenants.entitlements import Entitlements
from tenants.records import LIMIT_FIELDS
from tenants.store import TenantStore
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
    records = {"tier": keyspace.tier("silver"), "tenant": keyspace.tenant("acme")}
    return key, records.get(kind, keyspace.apikey(keyspace.key_digest(key)))


async def bystander_of(admin: TenantAdmin) -> str:
    await admin.create_tier("other", {"utility": "0.5"})
    await admin.create_tenant("bystander", tier="other")
    return (await admin.create_key("bystander"))[0]
