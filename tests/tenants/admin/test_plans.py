"""Plans: a new price is a new version, and who signed an older one keeps it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from policies.errors import NotEntitled
from tenants.admin.admin import TenantAdmin
from tenants.changes.edits import AdminError, Changed, Conflict, Missing
from tenants.live.cache import EntitlementCache
from tenants.records import keyspace, schedule
from tenants.records.schema import RecordError
from tenants.store.store import TenantStore
from tests.tenants.conftest import Run, until

FILE = """\
plans:
  standard: {currency: EUR, image: 1500, "image:m:0.7": 500}
tiers:
  gold: {utility: 1.0, plan: standard@1, show_cost: yes}
tenants:
  acme: {tier: gold, budget_month: 25000000}
"""


async def signed(admin: TenantAdmin, tenant: str = "acme") -> str | None:
    return (await admin.tenant(tenant)).overrides.plan


async def sold(admin: TenantAdmin) -> None:
    await admin.create_plan("standard@1", {"image": "1500", "currency": "EUR"})
    await admin.create_tier("gold", {"utility": "1.0", "plan": "standard@1"})
    await admin.create_tier("free", {"utility": "0.7"})


async def test_who_signed_a_version_keeps_it_until_moved(admin: TenantAdmin, cache: EntitlementCache) -> None:
    await sold(admin)
    await admin.create_tenant("acme", tier="gold")
    key = (await admin.create_key("acme"))[0]
    made = await admin.set_prices("standard", {"image": "1800"})
    assert made.reference == "standard@2" and made.currency == "EUR"
    await admin.set_tier("gold", {"plan": "standard@2"})
    await admin.create_tenant("late", tier="gold")
    assert (await signed(admin), await signed(admin, "late")) == ("standard@1", "standard@2")

    async def price() -> int:
        plan = (await cache.authenticate(key)).plan
        assert plan is not None
        return plan.tariff("m", 1.0).cost(images=1)

    async def moved() -> bool:
        return await price() == 1800

    assert await price() == 1500
    assert await admin.move_plan(["acme"], "standard") == "standard@2"
    await until(moved)


async def test_those_who_signed_nothing_keep_what_their_tier_had(admin: TenantAdmin, store: TenantStore) -> None:
    """Written by hand, or there before their tier had a plan."""
    await sold(admin)
    await admin.create_tier("old", {"utility": "0.9"})
    await admin.create_tenant("before", tier="old")
    await admin.set_tier("old", {"plan": "standard@1"})
    await store.execute("HSET", keyspace.tenant("byhand"), "name", "x", "tier", "old")
    await admin.set_prices("standard", {"image": "1"})
    await admin.set_tier("old", {"plan": "standard@2"})
    assert [await signed(admin, name) for name in ("before", "byhand")] == ["standard@1"] * 2


async def test_who_comes_to_a_tier_signs_its_plan_now_later_and_back(admin: TenantAdmin) -> None:
    await sold(admin)
    await admin.create_plan("rich@4", {"image": "1"})
    await admin.create_tier("rich", {"utility": "1.0", "plan": "rich@4"})
    await admin.create_tenant("acme", tier="gold")
    await admin.set_tenant("acme", {"tier": "rich"})
    assert await signed(admin) == "rich@4"
    await admin.set_tenant("acme", {"tier": "free"})
    assert await signed(admin) is None
    await admin.set_tenant("acme", {"tier": "gold", "plan": "rich@4"})
    assert await signed(admin) == "rich@4"
    soon = round(time.time()) + 1000
    await admin.set_tenant("acme", {"tier": "gold"}, until=soon)
    scheduled = (await admin.tenant("acme")).scheduled
    assert scheduled == {schedule.name(soon, "tier", "gold"): "gold", schedule.name(soon, "plan", "x"): "rich@4"}
    trial = {schedule.name(soon, "tier", "free"): "free"}
    await admin.create_tenant("trial", tier="gold", fields=trial)
    assert await signed(admin, "trial") == "standard@1"
    assert (await admin.tenant("trial")).scheduled == trial | {schedule.name(soon, "plan", None): "-"}


async def test_a_version_is_not_changed_nor_deleted_while_anyone_has_it(admin: TenantAdmin) -> None:
    await sold(admin)
    with pytest.raises(Conflict, match="a version is not changed"):
        await admin.create_plan("standard@1", {"image": "2"})
    with pytest.raises(AdminError, match="says already"):
        await admin.set_prices("standard", {"image": "1500"})
    await admin.create_plan("standard@2", {"image": "2"})
    await admin.create_tenant("acme", tier="free")
    await admin.set_tenant("acme", {"plan": "standard@2"}, at=time.time() + 1000)
    for reference, user in (("standard@1", "tier gold"), ("standard@2", "tenant acme")):
        with pytest.raises(Conflict, match=user):
            await admin.delete_plan(reference)
    found = await admin.found(keyspace.plan("standard@2"))
    with pytest.raises(Changed):
        await admin.set_prices("standard", {"image": "3"}, expect="0" * 16)
    assert (await admin.set_prices("standard", {"image": "3"}, expect=found.version)).reference == "standard@3"
    await admin.delete_plan("standard@3")
    for reference in ("nosuch", "nosuch@1", "standard@9"):
        with pytest.raises(Missing, match="There is no plan"):
            await admin.plan_version(reference)
    for field in ("plan", schedule.name(time.time() + 9, "plan", "x")):
        with pytest.raises(AdminError, match="There is no plan 'nosuch@1'"):
            await admin.set_tier("gold", {field: "nosuch@1"})
    with pytest.raises((AdminError, RecordError), match="standard@1"):
        await admin.set_tier("gold", {"plan": "standard"})


async def test_a_plan_that_is_gone_or_broken_fails_closed_for_who_has_it(
    admin: TenantAdmin, cache: EntitlementCache, store: TenantStore
) -> None:
    await sold(admin)
    await admin.create_tenant("acme", tier="gold")
    key = (await admin.create_key("acme"))[0]
    await store.execute("HSET", keyspace.plan("standard@1"), "image", "cheap")

    async def refused() -> bool:
        try:
            await cache.authenticate(key)
        except NotEntitled as error:
            return error.code == "entitlements_invalid"
        return False

    await until(refused)
    assert [str(p) for p in await admin.check()][0].startswith("plan:standard@1 image: expected a whole number")
    await store.execute("DEL", keyspace.plan("standard@1"))
    assert await refused()
    problems = {(p.key, p.field, p.problem) for p in await admin.check()}
    missing = "there is no plan 'standard@1'"
    assert {("tier:gold", "plan", missing), ("tenant:acme", "plan", missing)} <= problems


async def test_prices_come_from_a_file_and_by_command(tenants: Run, invoke: Run, tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(FILE)
    assert "+ plan standard@1" in await tenants("apply", str(file), "--yes")
    assert "Nothing to change" in await tenants("apply", str(file), "--prune", "--yes")
    assert json.loads(await tenants("show", "acme", "--json"))["plan"] == "standard@1"
    file.write_text(FILE.replace("image: 1500", "image: 1800"))
    assert "+ plan standard@2" in await tenants("apply", str(file), "--yes")
    assert json.loads(await tenants("show", "acme", "--json"))["plan"] == "standard@1"
    shown = json.loads(await tenants("price", "show", "standard", "--json"))
    assert shown == {"plan": "standard@2", "currency": "EUR", "image": 1800, "image:m:0.7": 500}
    assert "standard@3" in await tenants("price", "set", "standard", "tokens_in_1m=150000", "--remove", "image:m:0.7")
    assert "1 tenants" in await tenants("plan", "move", "standard@2", "acme")
    assert "1 tenants" in await tenants("plan", "move", "standard", "--tier", "gold")
    assert json.loads(await tenants("tier", "show", "gold", "--json"))["plan"] == "standard@3"
    assert [p["plan"] for p in json.loads(await tenants("price", "list", "--json"))] == [
        f"standard@{number}" for number in (1, 2, 3)
    ]
    exported = yaml.safe_load(await tenants("export"))
    assert set(exported["plans"]) == {"standard@1", "standard@2", "standard@3"}
    file.write_text(yaml.safe_dump(exported))
    assert "Nothing to change" in await tenants("apply", str(file), "--prune")
    exported["plans"]["standard@1"]["image"] = 1
    file.write_text(yaml.safe_dump(exported))
    wrong = await invoke("apply", str(file), "--yes")
    assert wrong.exit_code == 1 and "plans.standard@1: a version is not changed" in wrong.output
    assert "Deleted standard@1" in await tenants("price", "delete", "standard@1", "--yes")
    said = await tenants("audit")
    assert "plan create" in said and "after standard@2" in said and "plan delete" in said
    for words, problem in (
        (("price", "set", "standard", "image=0.5"), "plan:standard@4 image: expected a whole number of micro-units"),
        (("price", "set", "standard", "images=5"), "plan:standard@4 images: is no price"),
        (("price", "show", "nosuch"), "There is no plan 'nosuch'"),
        (("plan", "move", "standard"), "name tenants, or a tier"),
        (("plan", "move", "nosuch@1", "acme"), "There is no plan 'nosuch@1'"),
        (("set", "acme", "plan=nosuch@1"), "There is no plan 'nosuch@1'"),
        (("set", "acme", "budget_month=25.00"), "budget_month"),
    ):
        result = await invoke(*words)
        assert result.exit_code == 1 and problem in result.output and len(result.output.splitlines()) == 1, (
            result.output
        )
