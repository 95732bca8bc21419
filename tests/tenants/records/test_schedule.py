"""What a record changes by itself: at its moment, at every gateway, with nobody to carry it out."""

from __future__ import annotations

import json
import time

import pytest

from tenants.admin.admin import TenantAdmin
from tenants.changes.edits import AdminError, Conflict
from tenants.live.cache import EntitlementCache
from tenants.records import schedule
from tenants.records.fields import iso
from tenants.records.hashes import parse_tenant, parse_tier
from tenants.records.schema import RecordError
from tenants.store.store import TenantStore
from tests.tenants.conftest import Run, populate, prepare, refused, until

SOON = 4000000000.0


async def test_a_change_comes_at_its_moment_unasked_and_unannounced(
    admin: TenantAdmin, cache: EntitlementCache
) -> None:
    key = await populate(admin)
    await admin.create_tier("gold", {"utility": "1.0"})
    begins = time.time() + 2.5
    await admin.set_tenant("acme", {"tier": "gold", "rpm": "5"}, at=begins, until=begins + 2.0)
    before = await cache.authenticate(key)
    assert (before.tier.name, before.limits.rpm) == ("silver", None) and time.time() < begins

    async def gold() -> bool:
        own = await cache.authenticate(key)
        return (own.tier.name, own.limits.rpm) == ("gold", 5) and own.version != before.version

    async def silver() -> bool:
        own = await cache.authenticate(key)
        return (own.tier.name, own.limits.rpm) == ("silver", None)

    await until(gold)
    assert time.time() >= begins - 1.0  # moments are whole seconds
    await until(silver)
    assert await admin.check() == []
    entry = (await admin.log.read(1))[0]
    assert entry["detail"] == "as scheduled" and (await admin.tenant("acme")).scheduled == {}


async def test_a_tier_is_changed_for_all_its_tenants_and_a_status_too(
    admin: TenantAdmin, cache: EntitlementCache
) -> None:
    key = await populate(admin)
    await admin.set_tier("silver", {"utility": "0.5"}, at=time.time() + 1.5)
    assert (await cache.authenticate(key)).tier.utility == 0.9

    async def lowered() -> bool:
        return (await cache.authenticate(key)).tier.utility == 0.5

    await until(lowered)
    await admin.set_tenant("acme", {"status": "suspended"}, at=time.time() + 1.5)
    await until(lambda: refused(cache, key, "tenant_suspended"))


async def test_what_is_to_come_must_be_valid_then(admin: TenantAdmin) -> None:
    await populate(admin)
    for changes in ({"rpm": "many"}, {"rpn": "5"}, {"status": "odd"}, {"tier": None}):
        with pytest.raises(RecordError):
            await admin.set_tenant("acme", changes, at=SOON)
    with pytest.raises(AdminError, match="no tier 'gold'"):
        await admin.set_tenant("acme", {"tier": "gold"}, at=SOON)
    with pytest.raises(RecordError):
        await admin.set_tier("silver", {"utility": None}, at=SOON)
    with pytest.raises(AdminError):
        await admin.set_tenant("acme", {"rpm": "5"}, at=1e15)
    with pytest.raises(AdminError, match="after its beginning"):
        await admin.set_tenant("acme", {"rpm": "5"}, at=SOON, until=SOON - 1)
    assert (await admin.tenant("acme")).scheduled == {}


async def test_a_tier_that_somebody_will_be_of_cannot_be_deleted(admin: TenantAdmin, store: TenantStore) -> None:
    await populate(admin)
    await admin.create_tier("gold", {"utility": "1.0"})
    await admin.set_tenant("acme", {"tier": "gold"}, at=SOON)
    with pytest.raises(Conflict, match="'acme'"):
        await admin.delete_tier("gold")
    await store.execute("DEL", "tier:gold")
    assert [(p.key, p.problem) for p in await admin.check()] == [("tenant:acme", "there is no tier 'gold'")]


async def test_the_end_of_a_trial_does_not_get_lost(
    admin: TenantAdmin, store: TenantStore, cache: EntitlementCache
) -> None:
    key = await populate(admin)
    await admin.create_tier("gold", {"utility": "1.0"})
    await admin.set_tenant("acme", {"tier": "gold"}, until=SOON)
    assert (await cache.authenticate(key)).tier.name == "gold"
    await store.execute("HDEL", "tenant:acme", schedule.name(SOON, "tier", "x"))
    await until(lambda: refused(cache, key, "entitlements_invalid"))


async def test_the_command_plans_shows_and_takes_back(tenants: Run, invoke: Run) -> None:
    await prepare(tenants)
    assert "at 2126-12-01T00:00:00Z" in await tenants("set", "acme", "tier=gold", "--at", "2126-12-01")
    await tenants("tier", "set", "gold", "rpm=5", "--at", "2127-01-01")
    await tenants("create", "trial", "--tier", "gold", "--until", "2126-01-01", "--then", "silver")
    listed = json.loads(await tenants("schedule", "--json"))
    assert [(c["time"][:10], c["record"], c["field"], c["value"]) for c in listed] == [
        ("2126-01-01", "tenant trial", "tier", "silver"),
        ("2126-12-01", "tenant acme", "tier", "gold"),
        ("2127-01-01", "tier gold", "rpm", "5"),
    ]
    assert "trial" in await tenants("schedule")
    (field,) = [name for name in json.loads(await tenants("show", "acme", "--json")) if name.startswith("at:")]
    await tenants("set", "acme", "--remove", field)
    assert len(json.loads(await tenants("schedule", "--json"))) == 2
    for words, said in (
        (["set", "acme", "rpm=1", "--at", "2001-01-01"], "in the past"),
        (["set", "acme", "rpm=1", "--at", ""], "--at is given no value"),
        (["set", "acme", "rpm=1", "--at", "soon"], "--at takes"),
        (["create", "b", "--tier", "gold", "--until", "14d"], "go together"),
    ):
        failed = await invoke(*words)
        assert failed.exit_code == 1 and said in failed.stderr, words


def test_changes_apply_in_the_order_of_their_moments() -> None:
    raw = {
        b"tier": b"a",
        b"rpm": b"1",
        b"at:2030-01-02T00:00:00Z:tier": b"c",
        b"at:2030-01-01T00:00:00Z:tier": b"b",
        b"at:2030-01-02T00:00:00Z:-rpm": b"-",
        b"at:2030-01-03T00:00:00Z:focus:m:tench, Tinca": b"0.5",
    }
    days = [1893456000.0 - 1 + 86400 * day for day in range(4)]
    seen = [parse_tenant("x", raw, day) for day in days]
    assert [(t.tier, t.overrides.rpm) for t in seen] == [("a", 1), ("b", 1), ("c", None), ("c", None)]
    assert seen[3].standing_focus == {"m": {"tench, Tinca": 0.5}}
    assert [t.changes_at for t in seen] == [*(day + 1 for day in days[:3]), None]
    assert iso(days[1] + 1) == "2030-01-02T00:00:00Z"
    for name in (b"at:2030-13-01T00:00:00Z:tier", b"at:soon:tier", b"at:2030-01-01T00:00:00Z:"):
        with pytest.raises(RecordError, match="is not a field"):
            parse_tier("x", {b"utility": b"1", name: b"1"})
