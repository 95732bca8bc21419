"""Answers step down where quotas and budgets are used up: exactly, on any number of gateways, and up again."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from policies.errors import LimitExceeded
from tenants.admin.admin import TenantAdmin
from tenants.live.cache import EntitlementCache
from tenants.live.entitlements import Entitlements
from tenants.metering import meters
from tenants.metering.admission import Admission
from tenants.metering.events import Event, read_events
from tenants.metering.lease import Lease
from tenants.metering.local import LocalLimits
from tenants.metering.usage import read_days
from tenants.metering.wanted import Tokens, Wanted, rungs_of
from tenants.records import keyspace
from tenants.records.ladders import busy, exhausted
from tenants.records.prices import parse_plan
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend, until
from tests.tenants.requests import MODEL, tenant, total

Got = tuple[float, str, int]
"""Level, reason and cost of one answer."""
PRICES = {"image": 100, "image:*:0.8": 60, "image:*:0.9": 90}


def stepping(ladder: str, prices: dict[str, int] | None = None, **limits: int) -> Entitlements:
    plan = parse_plan("p@1", {n.encode(): str(m).encode() for n, m in (PRICES if prices is None else prices).items()})
    return replace(tenant(**limits), plan=plan, when_exhausted=exhausted(ladder))


async def answered(admission: Admission, own: Entitlements, **request: int) -> Got | None:
    try:
        async with admission.admit(own, model=MODEL, **{"images": 1, **request}) as lease:  # type: ignore[arg-type]
            await asyncio.sleep(0)
    except LimitExceeded:
        return None
    return lease.sold.level, lease.reason, lease.cost


async def events(store: TenantStore) -> list[Event]:
    today = datetime.now(UTC).date()
    return [event async for event in read_events(store, today, today)]


async def balanced(store: TenantStore, got: list[Got | None]) -> None:
    """Usage by level, events and money are what the clients were told."""
    told = [one for one in got if one is not None]
    assert Counter((e.level, e.reason, e.cost) for e in await events(store)) == Counter(told)
    (day,) = await read_days(store, "acme", 1)
    by_level = Counter[str]()
    money = Counter[str]()
    for level, _, cost in told:
        by_level[f"{level:g}"] += 1
        money[f"{level:g}"] += cost
    assert {own.level: own.counts["requests"] for own in day.sold} == dict(by_level)
    assert {own.level: own.counts["cost"] for own in day.sold} == dict(money)
    assert day.total["cost"] == sum(money.values())


async def test_each_step_answers_exactly_its_share_over_two_gateways(
    shared_backend: Backend, store: TenantStore, admission: Admission
) -> None:
    own = stepping("step(0.8:20%, 0.7:10%)", {}, quota_images_day=101)
    async with await TenantStore.connect(shared_backend.url, timeout_s=5.0) as other:
        second = Admission(other)
        got = await asyncio.gather(*(answered(a, own) for a in (admission, second) for _ in range(64)))
        assert Counter(one and one[:2] for one in got) == {
            (0.9, ""): 70, (0.8, "quota"): 20, (0.7, "quota"): 11, None: 27,
        }  # fmt: skip
        assert await admission.drain() and await second.drain()
        await balanced(store, got)
        with pytest.raises(LimitExceeded, match="Quota used up: 101 images per day"):
            await admission.admit(own, model=MODEL, images=1).__aenter__()
        await second.aclose()


async def test_a_budget_is_never_exceeded_and_a_last_step_without_end_is_free_then(
    shared_backend: Backend, store: TenantStore, admission: Admission
) -> None:
    own = stepping("step(0.8:20%, 0.7)", budget_month=5010)
    async with await TenantStore.connect(shared_backend.url, timeout_s=5.0) as other:
        second = Admission(other)
        got = await asyncio.gather(*(answered(a, own) for a in (admission, second) for _ in range(64)))
        # 44 at 90 are 3960 of 4008; 17 at 60 are 4980 of 5010; what is left, 30, is taken by the next.
        assert Counter(got) == {
            (0.9, "", 90): 44, (0.8, "budget", 60): 17, (0.7, "budget", 30): 1, (0.7, "budget", 0): 66,
        }  # fmt: skip
        assert await admission.drain() and await second.drain()
        await balanced(store, got)
        assert (await total(store))["cost"] == 5010
        await second.aclose()


async def test_what_is_not_used_is_taken_by_who_comes_next_and_still_never_exceeded(
    store: TenantStore, admission: Admission
) -> None:
    own = stepping("step(0.8:30%, 0.7)", {"tokens_out_1k": 3000, "tokens_out_1k:*:0.8": 2000}, budget_day=1000)
    draw, got, most = random.Random(5), list[Got | None](), 0

    async def one() -> None:
        try:
            async with admission.admit(own, model=MODEL, tokens=Tokens(60, 20, 10)) as lease:
                await asyncio.sleep(draw.random() / 50)
                lease.settle(tokens_in=10, tokens_out=draw.randrange(lease.tokens - 10 + 1))
            got.append((lease.sold.level, lease.reason, lease.cost))
        except LimitExceeded:
            got.append(None)

    for _ in range(8):
        await asyncio.gather(*(one() for _ in range(16)))
        assert await admission.drain()
        most = max(most, (await total(store))["cost"])
    assert None not in got and most <= 1000
    assert {level for level, *_ in filter(None, got)} == {0.9, 0.8, 0.7}
    await balanced(store, got)


async def test_it_steps_up_when_the_period_turns_and_when_an_admin_adds_to_it(
    store: TenantStore, admission: Admission, admin: TenantAdmin, cache: EntitlementCache
) -> None:
    await admin.create_plan("p@1", {"image": "100"})
    await admin.create_tier(
        "gold", {"utility": "1.0", "plan": "p@1", "when_exhausted": "step(0.7)", "budget_day": "200"}
    )
    await admin.create_tenant("acme", tier="gold")
    key = (await admin.create_key("acme"))[0]

    async def next_one() -> Got | None:
        got = await answered(admission, await cache.authenticate(key))
        assert await admission.drain()
        return got

    assert [await next_one() for _ in range(3)] == [(1.0, "", 100)] * 2 + [(0.7, "budget", 0)]
    await admin.set_tenant("acme", {"budget_day": "300"})
    await until(lambda: stepped_up(next_one))
    assert await next_one() == (0.7, "budget", 0)
    # As if the day had ended: what was used is yesterday's.
    today = datetime.now(UTC).date()
    days = [keyspace.usage_period("acme", (today - timedelta(days=back)).isoformat()) for back in (0, 1)]
    await store.execute("RENAME", *days)
    assert await next_one() == (1.0, "", 100)
    await admin.set_tenant("acme", {"when_exhausted": "refuse", "budget_day": "0"})
    await until(lambda: refused(next_one))


async def stepped_up(next_one: object) -> bool:
    return (await next_one()) == (1.0, "", 100)  # type: ignore[operator]


async def refused(next_one: object) -> bool:
    return (await next_one()) is None  # type: ignore[operator]


async def test_rates_refuse_at_every_step(admission: Admission) -> None:
    own = stepping("step(0.7)", quota_images_day=2, rpm=5)
    got = [await answered(admission, own) for _ in range(7)]
    assert [one and one[0] for one in got] == [0.9, 0.9, 0.7, 0.7, 0.7, None, None]
    with pytest.raises(LimitExceeded) as caught:
        await admission.admit(own, model=MODEL).__aenter__()
    assert caught.value.code == "rate_limit_exceeded"


async def test_a_level_below_the_ladder_stays_and_one_that_discloses_too_little_is_refused(
    admission: Admission,
) -> None:
    own = stepping("step(0.8:50%, 0.7)", {}, quota_images_day=2)

    async def lease(**asked: object) -> Lease:
        async with admission.admit(own, model=MODEL, images=1, **asked) as taken:  # type: ignore[arg-type]
            return taken

    first, second, third = [await lease(level=0.75) for _ in range(3)]
    assert [(one.sold.level, one.reason) for one in (first, second)] == [(0.75, "")] * 2
    assert (third.sold.level, third.reason) == (0.7, "quota")
    with pytest.raises(LimitExceeded, match="Quota used up"):
        await lease(answerable=lambda level: level >= 0.8)
    assert (await lease(floor=0.74)).sold.level == 0.74


async def test_what_is_refused_one_request_is_not_refused_another_that_may_step_down(admission: Admission) -> None:
    """Refusals are remembered: not one of a request that needs what a lower level does not disclose."""
    own = stepping("step(0.7)", {}, quota_requests_day=1)
    assert await answered(admission, own) == (0.9, "", 0)
    for _ in range(3):
        with pytest.raises(LimitExceeded):
            async with admission.admit(own, model=MODEL, images=1, answerable=lambda level: level >= 0.9):
                pass
        admission.check_rate(own)
        assert await answered(admission, own) == (0.7, "quota", 0)


async def test_a_busy_model_steps_down_by_how_many_wait(admission: Admission) -> None:
    own = replace(stepping("step(0.6)", {}, quota_images_day=5), when_busy=busy("step(0.8:3, 0.7:6)"))
    got = []
    for waiting in (0, 2, 3, 5, 6, 9):
        async with admission.admit(own, model=MODEL, images=1, waiting=waiting) as lease:
            got.append((lease.sold.level, lease.reason))
    assert got == [(0.9, ""), (0.9, ""), (0.8, "busy"), (0.8, "busy"), (0.7, "busy"), (0.6, "quota")]
    async with admission.admit(
        tenant(), model=MODEL, images=1, waiting=99, answerable=lambda level: level >= 0.8
    ) as lease:
        assert (lease.sold.level, lease.reason) == (0.9, "")


async def test_the_ladder_holds_while_the_store_is_away(backend: Backend) -> None:
    async with await TenantStore.connect(backend.url) as store:
        admission, own = Admission(store), stepping("step(0.8:20%, 0.7)", budget_day=1000)
        got = [await answered(admission, own) for _ in range(6)]
        backend.kill()
        got += [await answered(admission, own) for _ in range(9)]
        assert Counter(got) == {
            (0.9, "", 90): 8, (0.8, "budget", 60): 4, (0.7, "budget", 40): 1, (0.7, "budget", 0): 2,
        }  # fmt: skip
        backend.start()
        await until(lambda: admission.drain(0.1))
        await balanced(store, got)
        await admission.aclose()


async def test_the_store_and_a_gateway_alone_judge_alike(store: TenantStore, admission: Admission) -> None:
    draw = random.Random(11)
    for case in range(150):
        name = f"t{case}"
        fields = {
            field: draw.choice([0, draw.randrange(1, 50), draw.randrange(50, 3000), 10**6])
            for field in draw.sample(list(meters.FIELDS), draw.randrange(1, 6))
        }
        shares = [draw.randrange(1, 30) for _ in range(draw.randrange(3))]
        steps = [f"0.{80 - at}:{share}%" for at, share in enumerate(shares)] + draw.choice([[], ["0.5"]])
        own = stepping(
            f"step({', '.join(steps)})" if steps else "refuse",
            {"image": draw.randrange(40), "tokens_out_1k": draw.randrange(9000), "image:*:0.8": draw.randrange(40)},
            **fields,
        )
        own = replace(own, tenant=name)
        used = {name: draw.randrange(60) for name in ("requests", "images", "tokens_in", "cost")}
        now = datetime.now(UTC)
        for period in (now.strftime("%Y-%m-%dT%H"), now.strftime("%Y-%m-%d"), now.strftime("%Y-%m")):
            words = [word for pair in used.items() for word in pair]
            await store.execute("HSET", keyspace.usage_period(name, period), *words)
        held_to, prompt = meters.limits_of(own, MODEL), draw.randrange(20)
        least = prompt + draw.randrange(1, 40)
        rungs = rungs_of(own, MODEL, 0.9, floor=0.1, waiting=0, answerable=lambda level: True)
        wanted = Wanted(1, draw.randrange(4), Tokens(least + draw.randrange(200), least, prompt), rungs)
        known = await admission.look(own)
        alone = LocalLimits()
        alone.learn(name, known)
        here = alone.judge(name, held_to, wanted)
        there = await admission.ask(own, held_to, secrets.token_hex(12), wanted, 60.0)
        assert here.forbidden_by == there.forbidden_by, (own, used, wanted)
        assert (here.wait_ms > 0, here.wait_ms == -1) == (there.wait_ms > 0, there.wait_ms == -1)
        if here.forbidden_by is None:
            assert (here.rung, here.stepped_by, here.tokens, here.cost) == (
                (there.rung, there.stepped_by, there.tokens, there.cost)
            ), (own, used, wanted)
