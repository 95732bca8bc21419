"""Money: what a request costs is one more counter, admitted with the most that it can be, settled to what it was."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from policies.errors import LimitExceeded, ServiceError
from tenants.live.entitlements import Entitlements
from tenants.metering.admission import Admission
from tenants.metering.events import read_events
from tenants.metering.refusals import GIVEN_BACK_S
from tenants.metering.usage import read_days
from tenants.metering.wanted import Tokens
from tenants.records import keyspace
from tenants.records.prices import parse_plan
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend
from tests.tenants.requests import MODEL, attempt, tenant, total

PRICES = {"request": 10, "image": 100, "image:m:0.9": 250, "tokens_in_1k": 2000, "tokens_out_1k": 6000}


def paying(prices: dict[str, int] = PRICES, **limits: int) -> Entitlements:
    plan = parse_plan("standard@1", {name.encode(): str(micro).encode() for name, micro in prices.items()})
    return replace(tenant(**limits), plan=plan)


async def costs(store: TenantStore) -> list[int]:
    today = datetime.now(UTC).date()
    return [event.cost async for event in read_events(store, today, today)]


async def test_usage_and_events_carry_the_cost_by_level(store: TenantStore, admission: Admission) -> None:
    own = paying()
    for level, used in ((0.9, (2, 0, 0)), (0.7, (2, 0, 0)), (0.7, (0, 3, 5))):
        images, tokens_in, tokens_out = used
        async with admission.admit(own, model=MODEL, images=images, tokens=Tokens(50, 50, 10), level=level) as lease:
            lease.settle(tokens_in=tokens_in, tokens_out=tokens_out, images=images)
        assert lease.cost == {0.9: 510, 0.7: 210 if images else 46}[level]
    assert await admission.drain()
    (day,) = await read_days(store, "acme", 1)
    assert day.total["cost"] == day.by_model[MODEL]["cost"] == 766 == sum(await costs(store))
    assert {own.level: own.counts["cost"] for own in day.sold} == {"0.9": 510, "0.7": 256}


@pytest.mark.parametrize("period", ["day", "month"])
async def test_of_64_requests_at_once_a_budget_admits_exactly_as_many_as_it_pays(
    store: TenantStore, admission: Admission, period: str
) -> None:
    own = paying(**{f"budget_{period}": 3000})  # 260 each
    results = await asyncio.gather(*(attempt(admission, own, images=1) for _ in range(64)))
    assert sum(results) == 11
    assert await admission.drain()
    assert (await total(store))["cost"] == 2860
    assert await admission.remaining(own) == {f"budget_{period}": 140}
    with pytest.raises(LimitExceeded, match=r"Budget used up: 0\.003 per") as caught:
        await admission.admit(own, model=MODEL, images=1).__aenter__()
    assert caught.value.code == "budget_exceeded" and not caught.value.retry_soon and caught.value.retry_after
    with pytest.raises(LimitExceeded, match=r"Beyond the budget: 0\.003 per") as caught:
        await admission.admit(own, model=MODEL, images=12).__aenter__()
    assert caught.value.retry_after is None


async def test_a_budget_may_be_a_keys_and_a_models(admission: Admission) -> None:
    own = replace(
        paying(), key_limits=tenant(budget_day=300).limits, model_limits={"a": tenant(budget_month=520).limits}
    )
    assert [await attempt(admission, own, images=1) for _ in range(2)] == [True, False]
    with pytest.raises(LimitExceeded, match="for this API key"):
        await admission.admit(own, model=MODEL, images=1).__aenter__()
    other = replace(own, key_limits=None)
    for admitted in (True, True, True, True, False):  # 110 each: model a has a price of any level alone
        try:
            async with admission.admit(other, model="a", images=1):
                assert admitted
        except LimitExceeded as error:
            assert not admitted and "for model a" in error.message


async def test_the_most_is_reserved_and_what_is_not_used_comes_back(store: TenantStore, admission: Admission) -> None:
    own = paying(budget_day=10_000)
    async with admission.admit(own, model=MODEL, tokens=Tokens(1010, 1010, 10)) as lease:  # 10 + 20 + 6000
        assert await admission.remaining(own) == {"budget_day": 3970}
        assert not await attempt(admission, own, tokens=Tokens(1010, 1010, 10))
        lease.settle(tokens_in=10, tokens_out=50)
        assert lease.cost == 330
    assert await admission.drain()
    assert await admission.remaining(own) == {"budget_day": 9670}
    await asyncio.sleep(GIVEN_BACK_S)  # so long the refusal is believed
    with pytest.raises(ServiceError, match="a fault of ours"):
        async with admission.admit(own, model=MODEL, tokens=Tokens(1010, 1010, 10)) as lease:
            lease.settle(tokens_in=10, tokens_out=50)
            raise ServiceError("a fault of ours")
    assert lease.cost == 0 and await admission.drain()
    assert await admission.remaining(own) == {"budget_day": 9670}
    assert await costs(store) == [330, 0]


@pytest.mark.parametrize("left", [47, 60, 100, 101, 5999, 6029])
async def test_an_answer_may_shrink_to_what_a_budget_has_left(admission: Admission, left: int) -> None:
    own = paying(budget_day=left)
    async with admission.admit(own, model=MODEL, tokens=Tokens(1010, 11, 10)) as lease:
        tokens = lease.tokens
        lease.settle(tokens_in=10, tokens_out=tokens - 10)
    assert own.plan is not None
    tariff = own.plan.tariff(MODEL, 0.9)
    assert 11 <= tokens < 1010
    exact = tariff.cost(requests=1, tokens_in=10, tokens_out=tokens - 10)
    assert lease.cost == exact <= left
    # Nearly as many as could be paid.
    assert tariff.cost(requests=1, tokens_in=10, tokens_out=tokens - 8) > left - 6


async def test_no_micro_unit_is_lost_of_the_dearest_prices(store: TenantStore, admission: Admission) -> None:
    own = paying({"image": 10**12, "request": 1, "tokens_out_1k": 10**12 - 1})
    async with admission.admit(own, model=MODEL, images=9, tokens=Tokens(900_000, 900_000, 0)) as lease:
        lease.settle(images=9, tokens_out=777_777)
    exact = 9 * 10**12 + 1 + (2 * 777_777 * (10**12 - 1) + 1000) // 2000
    assert lease.cost == exact
    assert await admission.drain()
    assert (await total(store))["cost"] == exact and await costs(store) == [exact]
    assert await store.execute("HGET", keyspace.reserved("acme"), "cost") == b"0"


async def test_a_budget_that_is_used_up_stays_so_while_the_store_is_away(backend: Backend) -> None:
    async with await TenantStore.connect(backend.url) as store:
        admission, own = Admission(store), paying(budget_day=1310, quota_requests_day=1000)
        assert [await attempt(admission, own, images=1) for _ in range(3)] == [True] * 3
        backend.kill()
        assert [await attempt(admission, own, images=1) for _ in range(5)] == [True] * 2 + [False] * 3
        await admission.aclose(0.0)


async def test_records_of_requests_of_before_there_was_money_are_read(store: TenantStore, admission: Admission) -> None:
    """Such as were under way when the gateways were replaced: they lapse, or are settled."""
    now = int((await store.execute("TIME"))[0])
    request, running = keyspace.request("acme"), keyspace.running("acme")
    await store.execute("SET", f"{request}:old", f"live {now} 1 0 900 - ")
    await store.execute("SET", f"{request}:gone", f"settled {now} 0 0 0  ")
    await store.execute("HSET", keyspace.reserved("acme"), "requests", 1, "images", 0, "tokens", 900)
    await store.execute("ZADD", running, (now - 1) * 1000, "old", (now - 1) * 1000, "gone")
    own = tenant(quota_tokens_day=1000)
    assert await attempt(admission, own, tokens=800)
    assert await store.execute("ZCARD", running) == 0 or await admission.drain()
