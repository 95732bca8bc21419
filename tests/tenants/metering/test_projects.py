"""Limits that several tenants and keys share: never above, whoever refuses, and nothing lost by it."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from policies.errors import LimitExceeded, NotEntitled
from tenants.admin.admin import TenantAdmin
from tenants.changes import index
from tenants.changes.edits import AdminError, Conflict
from tenants.live.cache import EntitlementCache
from tenants.live.entitlements import Entitlements, Limits
from tenants.metering.admission import Admission
from tenants.metering.events import read_events
from tenants.metering.usage import read_days
from tenants.metering.wanted import Tokens
from tenants.records import keyspace
from tenants.records.ladders import exhausted
from tenants.records.prices import parse_plan
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend, Run, populate, until
from tests.tenants.requests import MODEL, attempt, tenant

TODAY = datetime.now(UTC).date()


def member(name: str, limits: dict[str, int] | None = None, **projects: dict[str, int]) -> Entitlements:
    """A tenant with limits of its own, in projects."""
    return replace(tenant(name, **(limits or {})), projects={p: Limits(**own) for p, own in projects.items()})


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({"rpm": 60}, 60),
        ({"tpm": 600}, 60),
        ({"quota_requests_day": 60}, 60),
        ({"quota_tokens_month": 605}, 60),
        ({"quota_requests_hour": 60, "billing_day": 9}, 60),
    ],
)
async def test_no_shared_limit_is_exceeded_by_64_clients_of_four_tenants_on_two_gateways(
    shared_backend: Backend, store: TenantStore, admission: Admission, limits: dict[str, int], most: int
) -> None:
    await share_a_limit(shared_backend.url, store, admission, limits, most)


async def share_a_limit(url: str, store: TenantStore, admission: Admission, limits: dict[str, int], most: int) -> None:
    owns = [member(f"t{i}", {"quota_requests_day": 1000}, team=limits) for i in range(4)]
    answered = Counter[str]()
    async with await TenantStore.connect(url, timeout_s=5.0) as other:
        second = Admission(other)

        async def client(i: int) -> None:
            for _ in range(4):
                own = owns[i % 4]
                try:
                    async with (admission, second)[i % 2].admit(own, model=MODEL, tokens=10, level=0.9) as lease:
                        await asyncio.sleep(0)
                        lease.settle(tokens_in=4, tokens_out=6)
                    answered[own.tenant] += 1
                except LimitExceeded as error:
                    assert "project 'team'" in error.message
                    answered["refused"] += 1

        await asyncio.gather(*(client(i) for i in range(64)))
        assert await admission.drain(20.0) and await second.drain(20.0)
        await second.aclose()
    assert sum(answered.values()) == 256 and sum(answered[own.tenant] for own in owns) == most
    (shared,) = await read_days(store, keyspace.shared("team"), 1)
    assert shared.total["requests"] == most and shared.total["tokens_reserved"] == 0
    assert shared.total["tokens_in"] + shared.total["tokens_out"] == 10 * most
    for own in owns:
        (day,) = await read_days(store, own.tenant, 1)
        assert day.total["requests"] == answered[own.tenant] and day.total["tokens_reserved"] == 0
        assert await admission.remaining(replace(own, projects={})) == {
            "quota_requests_day": 1000 - answered[own.tenant]
        }
    (rejected,) = {sum([(await read_days(store, own.tenant, 1))[0].total["rejected"] for own in owns])}
    assert rejected == answered["refused"]


async def test_who_is_refused_by_a_project_gets_all_back_that_its_tenant_gave(
    store: TenantStore, admission: Admission
) -> None:
    own_limits = {"rpm": 5, "tpm": 100, "concurrency": 1, "quota_requests_day": 5, "quota_tokens_day": 100}
    own = member("acme", own_limits, team={"concurrency": 0})
    for _ in range(20):
        with pytest.raises(LimitExceeded, match="project 'team'"):
            async with admission.admit(own, model=MODEL, images=1, tokens=90):
                pass
    assert await admission.drain()
    assert await admission.remaining(tenant("acme", **own_limits)) == {name: float(n) for name, n in own_limits.items()}
    for _ in range(5):
        assert await attempt(admission, tenant("acme", **own_limits), tokens=20)
        assert await admission.drain()
    day = (await read_days(store, "acme", 1))[0].total
    assert (day["requests"], day["rejected"], day["tokens_reserved"]) == (5, 20, 0)
    # And by the second of two projects, the first.
    two = member("acme", {}, first={"rpm": 3}, second={"quota_requests_day": 0})
    for _ in range(9):
        assert not await attempt(admission, two)
    assert await admission.drain()
    assert (await admission.remaining(member("x", {}, first={"rpm": 3})))["rpm"] == 3.0


async def test_a_tenants_refusal_costs_its_project_nothing_and_grants_are_the_least_of_both(
    store: TenantStore, admission: Admission
) -> None:
    own = member("acme", {"rpm": 1}, team={"rpm": 5, "quota_tokens_day": 50})
    async with admission.admit(own, model=MODEL, tokens=Tokens(400, 10)) as lease:
        assert (lease.tokens, lease.short) == (50, 350)
        lease.settle(tokens_in=10, tokens_out=5)
    for _ in range(9):
        assert not await attempt(admission, own)
    assert await admission.drain()
    left = await admission.remaining(own)
    assert (left["rpm"], left["quota_tokens_day"]) == (0.0, 35.0)
    team = await admission.remaining(member("other", {}, team={"rpm": 5, "quota_tokens_day": 50}))
    assert team["rpm"] == 4.0
    headers = lease.headers()
    assert headers["x-ratelimit-limit-requests"] == "1"


async def test_a_projects_usage_is_its_members_and_each_request_is_one_event(
    store: TenantStore, admission: Admission
) -> None:
    for name in ("a", "b"):
        for failed in (False, True):
            own = member(name, {}, team={"quota_requests_day": 100})
            try:
                async with admission.admit(own, model=MODEL, tokens=10, level=0.7) as lease:
                    lease.settle(tokens_in=1, tokens_out=2)
                    if failed:
                        raise RuntimeError("a bug")
            except RuntimeError:
                pass
    assert await admission.drain()
    (team,) = await read_days(store, keyspace.shared("team"), 1)
    assert (team.total["requests"], team.total["tokens_out"], team.total["failed"]) == (2, 4, 2)
    found = [e async for e in read_events(store, TODAY, TODAY)]
    assert Counter(e.tenant for e in found) == {"a": 2, "b": 2}


async def test_a_leader_of_projects_writes_audited_records_that_reach_gateways_at_once(
    store: TenantStore, admin: TenantAdmin, cache: EntitlementCache, tenants: Run, invoke: Run
) -> None:
    secret = await populate(admin)
    await populate(admin, "other")
    await tenants("project", "create", "team-a", "rpm=7", "quota_requests_month=100", "billing_day=17")
    await tenants("set", "acme", "project=team-a")
    own = await cache.authenticate(secret)
    assert own.projects["team-a"].rpm == 7 and own.projects["team-a"].billing_day == 17
    await tenants("project", "set", "team-a", "rpm=8")

    async def seen() -> bool:
        return (await cache.authenticate(secret)).projects["team-a"].rpm == 8

    await until(seen)
    key = (await admin.find_key(secret)).id
    await tenants("project", "create", "team-b", "concurrency=2")
    await tenants("key", "set", key, "project=team-b")

    async def both() -> bool:
        return set((await cache.authenticate(secret)).projects) == {"team-a", "team-b"}

    await until(both)
    assert (await admin.rotate_key(key, overlap_s=60))[1].project == "team-b"
    assert set(await index.belonging(store, "project:team-a")) == {"tenant:acme"}
    for name in ("team-a", "team-b"):
        wrong = await invoke("project", "delete", name, "--yes")
        assert wrong.exit_code == 1 and "members" in wrong.output
    for words in (("set", "other", "project=none"), ("key", "set", key, "project=none")):
        wrong = await invoke(*words)
        assert wrong.exit_code == 1 and "no project 'none'" in wrong.output
    wrong = await invoke("project", "set", "team-a", "utility=1")
    assert wrong.exit_code == 1 and "utility" in wrong.output
    file = await tenants("export")
    assert "team-a" in file and "project: team-a" in file
    entries = await admin.log.read(20)
    assert {"project create", "project set", "tenant set"} <= {e["action"] for e in entries}
    assert await admin.check() == []
    await store.execute("DEL", "project:team-a")
    assert [(p.key, p.field) for p in await admin.check()] == [("tenant:acme", "project")]

    async def refused() -> bool:
        try:
            await cache.authenticate(secret)
        except NotEntitled as error:
            return error.code == "entitlements_invalid"
        return False

    await until(refused)  # a limit must not go by losing its record


async def test_a_project_is_deleted_once_nobody_belongs_to_it(admin: TenantAdmin) -> None:
    await populate(admin)
    await admin.create_project("team", {"rpm": "5"})
    with pytest.raises(Conflict):
        await admin.create_project("team", {})
    await admin.set_tenant("acme", {"project": "team"})
    with pytest.raises(Conflict, match="1 members"):
        await admin.delete_project("team")
    await admin.set_tenant("acme", {"project": None})
    await admin.delete_project("team")
    with pytest.raises(AdminError, match="no project"):
        await admin.set_tenant("acme", {"project": "team"})


async def test_answers_step_down_by_a_projects_budget_and_all_book_the_level_that_was_given(
    store: TenantStore, admission: Admission
) -> None:
    plan = parse_plan("p@1", {b"request": b"10", b"request:*:0.7": b"4"})
    ladder = exhausted("step(0.7)")
    levels = Counter[str]()
    for i in range(30):
        own = replace(
            member(f"t{i % 3}", {"budget_day": 10_000}, team={"budget_day": 100}), plan=plan, when_exhausted=ladder
        )
        try:
            async with admission.admit(own, model=MODEL) as lease:
                pass
            levels[f"{lease.sold.level:g} {lease.reason}"] += 1
        except LimitExceeded as error:
            levels[f"refused {'team' in error.message}"] += 1
        assert await admission.drain()
    (team,) = await read_days(store, keyspace.shared("team"), 1)
    found = [e async for e in read_events(store, TODAY, TODAY)]
    by_level = Counter(f"{event.level:g} {event.reason}" for event in found)
    assert by_level == Counter({k: n for k, n in levels.items() if "refused" not in k}) and len(by_level) == 2, levels
    assert {s.level: s.counts["requests"] for s in team.sold} == {k.split()[0]: n for k, n in by_level.items()}
    assert team.total["cost"] == sum(event.cost for event in found)
    days = [(await read_days(store, f"t{i}", 1))[0] for i in range(3)]
    assert sum(day.total["cost"] for day in days) == team.total["cost"] <= 100
