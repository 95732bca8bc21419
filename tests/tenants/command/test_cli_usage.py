"""`tenants usage`: days, months, tables, CSV and JSON."""

from __future__ import annotations

import csv
import json

from tenants.live.cache import EntitlementCache
from tenants.metering.admission import Admission
from tenants.records import keyspace
from tenants.store.store import TenantStore
from tests.tenants.conftest import Run, prepare


async def test_usage_is_shown_by_day_and_model(tenants: Run, store: TenantStore, cache: EntitlementCache) -> None:
    await prepare(tenants)
    own = await cache.authenticate((await tenants("key", "create", "acme")).strip())
    admission = Admission(store)
    async with admission.admit(own, model="resnet", images=3):
        pass
    await admission.aclose()
    days = json.loads(await tenants("usage", "acme", "--json"))
    assert len(days) == 7 and days[0]["by_model"]["resnet"]["images"] == 3
    assert "resnet" in await tenants("usage", "acme")
    assert "resnet" in await tenants("usage", "acme", "--month", days[0]["period"][:7])


async def test_usage_between_two_days_is_a_table_csv_and_json(tenants: Run, store: TenantStore) -> None:
    await prepare(tenants)
    for day, model, requests in (
        ("2030-01-30", "a", 1),
        ("2030-01-31", "a", 2),
        ("2030-01-31", "b", 3),
        ("2030-02-01", "a", 9),
    ):
        key = keyspace.usage_period("acme", day)
        await store.execute("HINCRBY", key, "requests", requests)
        await store.execute("HINCRBY", key, f"requests:{model}", requests)
    span = ("usage", "acme", "--from", "2030-01-29", "--to", "2030-01-31")
    days = json.loads(await tenants(*span, "--json"))
    assert [(day["period"], day["total"]["requests"]) for day in days] == [
        ("2030-01-31", 5),
        ("2030-01-30", 1),
        ("2030-01-29", 0),
    ]
    rows = list(csv.DictReader((await tenants(*span, "--csv")).splitlines()))
    assert [(row["period"], row["model"], row["requests"]) for row in rows] == [
        ("2030-01-31", "a", "2"),
        ("2030-01-31", "b", "3"),
        ("2030-01-30", "a", "1"),
    ]
    table = await tenants(*span)
    assert "2030-01-31" in table and "2030-02-01" not in table and "2030-01-29" not in table


async def test_usage_says_what_was_spent_of_each_budget(
    tenants: Run, store: TenantStore, cache: EntitlementCache
) -> None:
    await prepare(tenants)
    await tenants("price", "set", "standard", "image=1500", "currency=EUR")
    await tenants("tier", "set", "silver", "plan=standard@1", "budget_day=1000000", "billing_day=2")
    await tenants("set", "acme", "budget_month=25000000")
    own = await cache.authenticate((await tenants("key", "create", "acme")).strip())
    admission = Admission(store)
    async with admission.admit(own, model="resnet", images=3):
        pass
    await admission.aclose()
    shown = await tenants("usage", "acme")
    assert "budget_day: 0.0045 EUR of 1.00 EUR spent, by standard@1" in shown
    assert "budget_month: 0.0045 EUR of 25.00 EUR spent, by standard@1" in shown
    assert json.loads(await tenants("usage", "acme", "--json"))[0]["total"]["cost"] == 4500
