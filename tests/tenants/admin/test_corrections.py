"""Usage that an admin corrects or erases."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from tenants.admin.admin import TenantAdmin
from tenants.admin.corrections import Corrections, What
from tenants.changes.edits import AdminError, Conflict, Missing
from tenants.metering.admission import Admission
from tenants.metering.events import read_events
from tenants.metering.usage import COUNTERS, read_days, read_usage
from tenants.records import keyspace
from tenants.store.store import TenantStore
from tests.tenants.conftest import Run, populate
from tests.tenants.requests import MODEL, tenant

TODAY = datetime.now(UTC).date()


async def used(admission: Admission, name: str = "acme", count: int = 5) -> None:
    for _ in range(count):
        async with admission.admit(tenant(name), model=MODEL, images=1, tokens=50, level=0.9) as lease:
            lease.settle(tokens_in=3, tokens_out=4)
    assert await admission.drain()


async def test_a_correction_is_audited_an_event_of_its_own_kind_and_usage_stays_the_sum_of_events(
    store: TenantStore, admin: TenantAdmin, admission: Admission, tenants: Run
) -> None:
    await populate(admin, billing_day="17")
    await used(admission)
    key = tenant().key_id
    line = ("--model", MODEL, "--level", "0.9", "--tier", "silver", "--key", key, "--why", "an outage of ours")
    told = json.loads(await tenants("usage", "adjust", "acme", "requests=-2", "tokens_out=-6", *line, "--json"))
    assert told["booked"]
    again = json.loads(
        await tenants("usage", "adjust", "acme", "requests=-2", "tokens_out=-6", *line, "--id", told["id"], "--json")
    )
    assert again == {"id": told["id"], "booked": False}
    before = TODAY - timedelta(days=40)
    await tenants("usage", "adjust", "acme", "requests=7", "--on", str(before), *line[:4], "--why", "of another system")
    events = [e async for e in read_events(store, TODAY - timedelta(days=60), TODAY)]
    assert [(e.kind, e.note) for e in events][-2:] == [
        ("adjustment", "an outage of ours"), ("adjustment", "of another system"),
    ]  # fmt: skip
    for day in (TODAY, before):
        (usage,) = await read_days(store, "acme", 1, until=day)
        for name in ("requests", "images", "tokens_in", "tokens_out"):
            of_day = sum(getattr(e, name) for e in events if e.at.startswith(str(day)))
            assert usage.total[name] == of_day == sum(s.counts[name] for s in usage.sold), (day, name)
    (today,) = await read_days(store, "acme", 1)
    assert (today.total["requests"], today.total["tokens_out"]) == (3, 14)
    (entry, *_) = [e for e in await admin.log.read(10) if "outage" in e["detail"]]
    assert (entry["action"], entry["subject"]) == ("usage adjust", "acme") and told["id"] in entry["detail"]
    # A quota by month from the 17th on is corrected too.
    left = await admission.remaining(tenant(quota_requests_month=10, billing_day=17))
    assert left["quota_requests_month"] == 7


@pytest.mark.parametrize(
    ("changes", "amounts", "why", "said"),
    [
        ({}, {"requests": -6}, "w", "cannot be taken away"),
        ({"level": "0.7"}, {"requests": -1}, "w", "cannot be taken away"),
        ({}, {"requests": 0}, "w", "requests: must"),
        ({}, {"failed": 1}, "w", "amounts: must be some of"),
        ({}, {}, "w", "amounts: must"),
        ({}, {"requests": 2**50}, "w", "requests: must"),
        ({}, {"requests": 1}, " ", "why: must"),
        ({}, {"requests": 1}, "a\nb", "why: must"),
        ({"model": "a:b"}, {"requests": 1}, "w", "model: is no"),
        ({"level": "0"}, {"requests": 1}, "w", "level: must"),
        ({"level": "2"}, {"requests": 1}, "w", "level: must"),
        ({"tier": "a b"}, {"requests": 1}, "w", "tier: is no"),
        ({"key": "x"}, {"requests": 1}, "w", "key: must"),
        ({"tenant": "a}b"}, {"requests": 1}, "w", "tenant: is no"),
        ({"day": TODAY + timedelta(days=1)}, {"requests": 1}, "w", "day: must"),
        ({"day": TODAY - timedelta(days=400)}, {"requests": 1}, "w", "day: must"),
    ],
)
async def test_a_mistake_is_one_line_and_changes_nothing(
    store: TenantStore, admin: TenantAdmin, admission: Admission, changes: dict[str, str], amounts: dict[str, int],
    why: str, said: str,
) -> None:  # fmt: skip
    await populate(admin)
    await used(admission)
    before = (await read_days(store, "acme", 1), await admin.log.verify())
    fields = {"tenant": "acme", "day": TODAY, "model": MODEL, "level": "0.9", "tier": "silver"}
    what = What(**{**fields, "key": tenant().key_id, **changes})  # type: ignore[arg-type]
    with pytest.raises(AdminError, match=said) as caught:
        await Corrections(store, admin).adjust(what, amounts, why)
    assert "\n" not in str(caught.value)
    assert (await read_days(store, "acme", 1), await admin.log.verify()) == before


async def test_an_erased_tenant_leaves_nothing_but_the_audit_log_and_its_neighbour_stays(
    store: TenantStore, admin: TenantAdmin, admission: Admission, tenants: Run
) -> None:
    secret = await populate(admin, rpm="100", billing_day="9")
    await populate(admin, "acme2")
    for name in ("acme", "acme2"):
        own = tenant(name, rpm=100, concurrency=5, key={"rpm": 50})
        async with admission.admit(own, model=MODEL, tokens=9):
            pass
    assert await admission.drain()
    await store.execute("SET", keyspace.used(keyspace.key_digest(secret)), "2030-01-01T00:00:00Z")
    kept = {key async for key in store.scan("") if "acme2" in key}
    told = json.loads(await tenants("usage", "erase", "acme", "--yes", "--json"))
    assert told["keys"] == 1 and told["events"] == 1 and told["counters"] > 4
    left = {key async for key in store.scan("") if "acme" in key and "acme2" not in key}
    assert all(key.startswith(keyspace.request("acme")) for key in left), left  # tombstones, which expire
    assert keyspace.used(keyspace.key_digest(secret)) not in {key async for key in store.scan("used:")}
    assert kept <= {key async for key in store.scan("")}
    entries = [e for e in await admin.log.read(50) if e["subject"] == "acme"]
    assert entries[0]["action"] == "tenant erase" and (await admin.log.verify())["broken"] == []
    with pytest.raises(Missing):
        await Corrections(store, admin).erase("acme")
    # The name is free again: nothing of before counts.
    assert (await admin.create_tenant("acme", tier="silver")).id == "acme"
    (month,) = await read_usage(store, "acme", TODAY.isoformat()[:7])
    assert not any(month.total[name] for name in COUNTERS)


async def test_erasing_waits_for_requests_under_way_and_says_so(
    store: TenantStore, admin: TenantAdmin, admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenants.admin.corrections.PATIENCE_S", 0.0)
    await populate(admin)
    async with admission.admit(tenant(), model=MODEL, tokens=9):
        with pytest.raises(Conflict, match="under way"):
            await Corrections(store, admin).erase("acme")
        assert await store.execute("EXISTS", keyspace.tenant("acme")) == 0
    assert await admission.drain()
    assert (await Corrections(store, admin).erase("acme"))["events"] == 1
