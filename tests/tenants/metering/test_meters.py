"""Limits as data: whose, of what, in which period; what comes back, never fits, or shrinks to what is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest

from policies.errors import LimitExceeded
from tenants.admin.admin import TenantAdmin
from tenants.live.cache import EntitlementCache
from tenants.live.entitlements import Entitlements
from tenants.metering import meters
from tenants.metering.admission import Admission
from tenants.metering.meters import limits_of
from tenants.metering.wanted import Tokens
from tenants.records import keyspace
from tenants.records.schema import LimitFields
from tenants.store.store import TenantStore
from tests.tenants.conftest import REPOSITORY, Backend, populate, until
from tests.tenants.requests import MODEL, attempt, tenant, total

DYING = """
import asyncio, sys
from tenants.metering.admission import Admission
from tenants.store.store import TenantStore
from tests.tenants.requests import tenant

async def main():
    async with await TenantStore.connect(sys.argv[1], timeout_s=5.0) as store:
        own = tenant(quota_tokens_month=1000, quota_requests_day=5, tpm=100000, key={"quota_images_day": 9})
        await Admission(store).admit(own, model="m", images=3, tokens=900, lease_s=2.0).__aenter__()
        print("admitted", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def refusal(admission: Admission, own: Entitlements, **request: int) -> LimitExceeded:
    with pytest.raises(LimitExceeded) as caught:
        await admission.admit(own, model=MODEL, **request).__aenter__()  # type: ignore[arg-type]
    return caught.value


async def test_a_killed_gateways_reservations_are_given_back_once_its_lease_ran_out(
    shared_backend: Backend, store: TenantStore, admission: Admission
) -> None:
    command = [sys.executable, "-c", DYING, shared_backend.url]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": REPOSITORY}, stdout=subprocess.PIPE) as gateway:
        assert gateway.stdout is not None
        assert await asyncio.to_thread(gateway.stdout.readline) == b"admitted\n"
        gateway.send_signal(signal.SIGKILL)
    own = tenant(quota_tokens_month=1000, quota_requests_day=5, key={"quota_images_day": 9})
    assert await admission.remaining(own) == {"quota_tokens_month": 100, "quota_requests_day": 4, "quota_images_day": 6}
    await refusal(admission, own, tokens=900)
    await until(lambda: attempt(admission, own, tokens=900))
    assert await admission.drain()
    counters = await total(store)
    assert (counters["requests"], counters["tokens_in"], counters["tokens_reserved"]) == (1, 900, 0)
    assert (await admission.remaining(own))["quota_images_day"] == 9
    assert await store.execute("ZCARD", keyspace.running("acme")) == 0


async def test_a_request_that_outlives_its_lease_is_booked_all_the_same_and_gives_back_once(
    store: TenantStore, admission: Admission
) -> None:
    own = tenant(quota_tokens_day=100, concurrency=5)
    lease = await admission.admit(own, model=MODEL, tokens=60, lease_s=0.02).__aenter__()
    await until(lambda: attempt(admission, own, tokens=90))  # 60 have come back
    lease.settle(tokens_in=1, tokens_out=2)
    await lease.__aexit__(None, None, None)
    assert await admission.drain()
    counters = await total(store)
    assert (counters["requests"], counters["tokens_in"], counters["tokens_out"]) == (2, 91, 2)
    assert await admission.remaining(own) == {"quota_tokens_day": 7, "concurrency": 5}


async def test_no_window_ever_holds_less_than_nothing(store: TenantStore, admission: Admission) -> None:
    """Tokens were reserved while there was no limit, and come back after one was set."""
    async with admission.admit(tenant(), model=MODEL, tokens=5000) as before:
        async with admission.admit(tenant(tpm=100), model=MODEL, tokens=12) as after:
            before.settle(tokens_in=1)
            after.settle(tokens_in=5, tokens_out=7)
    assert await admission.drain()
    assert await admission.remaining(tenant(tpm=100)) == {"tpm": 88}
    raw = await store.hashes(f"{keyspace.window('acme')}:tokens")
    assert all(int(value) >= 0 for value in raw[0].values())


@pytest.mark.parametrize("limit", ["tpm", "quota_tokens_hour", "quota_tokens_day", "quota_tokens_month"])
async def test_a_request_beyond_a_whole_limit_is_told_that_it_can_never_fit(admission: Admission, limit: str) -> None:
    error = await refusal(admission, tenant(**{limit: 10}, rpm=0), tokens=11)
    error = await refusal(admission, tenant(**{limit: 10}), tokens=11)
    assert "can never fit" in error.message and "ask for less" in error.message
    assert error.retry_after is None and not error.retry_soon
    assert await attempt(admission, tenant(**{limit: 10}), tokens=10)


async def test_a_full_minute_is_waited_for_at_most_as_long_as_clients_wait(store: TenantStore) -> None:
    own = tenant(rpm=1)
    for _ in range(20):  # whichever part of a second it is
        await store.execute("FLUSHALL")
        admission = Admission(store)
        assert await attempt(admission, own) and await admission.drain()
        error = await refusal(admission, own)
        assert error.retry_after is not None and 1 <= error.retry_after <= 60
        assert f"Try again in {error.retry_after} s." in error.message
        await admission.aclose()


async def test_of_several_limits_the_one_that_lasts_longest_speaks(admission: Admission) -> None:
    own = tenant(rpm=1, quota_requests_month=1, concurrency=1)
    async with admission.admit(own, model=MODEL):
        assert (await refusal(admission, own)).code == "quota_exceeded"


async def test_the_default_answer_shrinks_to_what_is_left_and_no_further(
    store: TenantStore, admission: Admission
) -> None:
    own = tenant(tpm=400, quota_tokens_day=300)
    async with admission.admit(own, model=MODEL, tokens=Tokens(642, 146)) as lease:
        assert (lease.tokens, lease.short) == (300, 342)
        assert (await admission.remaining(own)) == {"tpm": 100, "quota_tokens_day": 0}
        lease.settle(tokens_in=30, tokens_out=50)
    assert await admission.drain()
    async with admission.admit(own, model=MODEL, tokens=Tokens(642, 146)) as lease:
        assert lease.tokens == 220
        await refusal(admission, own, tokens=1)
        lease.settle(tokens_in=75, tokens_out=0)
    assert await admission.drain()
    with pytest.raises(LimitExceeded, match="Quota used up"):
        await admission.admit(own, model=MODEL, tokens=Tokens(642, 146)).__aenter__()
    with pytest.raises(LimitExceeded, match="can never fit"):
        await admission.admit(own, model=MODEL, tokens=Tokens(642, 301)).__aenter__()


async def test_a_models_own_limits_count_that_model_alone(store: TenantStore, admin: TenantAdmin) -> None:
    secret = await populate(admin, **{"rpm:a": "2", "quota_images_day:b": "3", "concurrency:a": "5", "rpm": "6"})
    await admin.set_tier("silver", {"rpm:a": "50", "tpm:a": "70", "utility:a": "0.5"})
    cache, admission = EntitlementCache(store, ttl_s=60.0), Admission(store)
    own = await cache.authenticate(secret)
    limits = {"a": LimitFields(rpm=2, tpm=70, concurrency=5), "b": LimitFields(quota_images_day=3)}
    assert own.model_limits == limits

    async def admitted(model: str, **request: int) -> bool:
        try:
            async with admission.admit(own, model=model, **request):  # type: ignore[arg-type]
                return True
        except LimitExceeded as error:
            assert f"for model {model}" in error.message or "6 requests per minute." in error.message
            return False

    assert [await admitted("a") for _ in range(3)] == [True, True, False]
    assert [await admitted("b", images=3) for _ in range(2)] == [True, False]
    assert [await admitted("c") for _ in range(4)] == [True, True, True, False]
    await admission.aclose()


async def test_an_hour_is_a_period(store: TenantStore, admission: Admission) -> None:
    own = tenant(quota_requests_hour=2, quota_images_day=100)
    assert [await attempt(admission, own, images=1) for _ in range(3)] == [True, True, False]
    assert "per hour" in (await refusal(admission, own)).message
    assert await admission.drain()
    assert await admission.remaining(own) == {"quota_requests_hour": 0, "quota_images_day": 98}
    hour = datetime.now(UTC).strftime("%Y-%m-%dT%H")
    assert await store.execute("HGET", keyspace.usage_period("acme", hour), "requests") == b"2"


@pytest.mark.parametrize("ahead", [0, 1, 5])
async def test_a_month_may_begin_on_a_billing_day_also_where_days_were_used_before_it_was_set(
    store: TenantStore, admission: Admission, ahead: int
) -> None:
    """`ahead`: days until the billing day; today is the first day of the period, or one of its last."""
    today = datetime.now(UTC).date()
    begins = today + timedelta(days=ahead)
    if begins.day > 28:
        begins = (begins.replace(day=1) + timedelta(days=32)).replace(day=1)
    day = begins.day if begins.day != 1 else 2
    start = last_anchor(today, day)
    for used in (start - timedelta(days=1), start, today):
        await store.execute("HINCRBY", keyspace.usage_period("acme", used.isoformat()), "requests", 3)
    own = tenant(quota_requests_month=20, billing_day=day)
    before = 3 * len([used for used in (start - timedelta(days=1), start, today) if used >= start])
    assert await admission.remaining(own) == {"quota_requests_month": 20 - before}
    for done in range(1, 4):
        assert await attempt(admission, own)
        assert await admission.drain()
        assert await admission.remaining(own) == {"quota_requests_month": 20 - before - done}
    assert await store.execute("EXISTS", keyspace.usage_period("acme", f"{start.isoformat()[:7]}@{day:02d}"))
    error = await refusal(admission, tenant(quota_requests_month=before + 3, billing_day=day))
    assert f"per month from day {day} (UTC)" in error.message and error.retry_after is not None
    until_next = datetime.combine(next_anchor(start, day), datetime.min.time(), UTC).timestamp() - time.time()
    assert abs(error.retry_after - until_next) < 30


def last_anchor(day: date, anchor: int) -> date:
    return next(d for d in (day - timedelta(days=i) for i in range(32)) if d.day == anchor)


def next_anchor(day: date, anchor: int) -> date:
    return next(d for d in (day + timedelta(days=i) for i in range(1, 33)) if d.day == anchor)


async def test_periods_are_the_calendars(store: TenantStore) -> None:
    """Against Python's own calendar, over leap years and turns of the year."""
    folder = Path(REPOSITORY) / "tenants" / "metering"
    answer = "return { label(asked[1], asked[2]), text(ends(asked[1], asked[2])) }"
    script = f"{(folder / 'meters.lua').read_text()}\n{answer}"
    for date_ in product((1999, 2000, 2024, 2100), (1, 2, 3, 12), (1, 14, 28), (0, 23)):
        at = datetime(*date_, tzinfo=UTC)
        for period in ("hour", "day", "month", "month@15", "month@28"):
            label, ends = await store.execute("EVAL", script, 0, json.dumps([period, int(at.timestamp())]))
            match period:
                case "hour":
                    wanted, end = at.strftime("%Y-%m-%dT%H"), at + timedelta(hours=1)
                case "day":
                    wanted, end = at.strftime("%Y-%m-%d"), at.replace(hour=0) + timedelta(days=1)
                case _:
                    begins = int(period[6:] or 1)
                    start = last_anchor(at.date(), begins)
                    wanted = start.strftime("%Y-%m") + (f"@{begins:02d}" if begins > 1 else "")
                    end = datetime.combine(next_anchor(start, begins), datetime.min.time(), UTC)
            assert (label.decode(), int(ends)) == (wanted, int(end.timestamp())), (at, period)


async def test_a_sum_that_runs_is_the_sum_of_its_seconds(store: TenantStore, admission: Admission) -> None:
    """Minutes with gaps, seen by the server's own clock: the sum is compared with a count of the seconds themselves."""
    own, key = tenant(rpm=10_000, tpm=10_000), f"{keyspace.window('acme')}:tokens"
    for gap in (0, 1, 30, 59, 60, 61, 62, 100, 200):
        if gap:  # as if so much time had passed: everything is that much older
            raw = {k.decode(): int(v) for k, v in (await store.hashes(key))[0].items()}
            moved = {str(int(k) - gap) if k.isdigit() else k: v for k, v in raw.items()}
            moved |= {name: raw[name] - gap for name in ("from", "last")}
            await store.execute("DEL", key)
            await store.execute("HSET", key, *(word for pair in moved.items() for word in pair))
        async with admission.admit(own, model=MODEL, tokens=100 + gap) as lease:
            lease.settle(tokens_in=50 + gap)
        assert await admission.drain()
        now = int((await store.execute("TIME"))[0])
        raw = {k.decode(): int(v) for k, v in (await store.hashes(key))[0].items()}
        counted = sum(v for k, v in raw.items() if k.isdigit() and now - 61 <= int(k) <= now)
        assert raw["sum"] == counted == sum(v for k, v in raw.items() if k.isdigit())
        left = (await admission.remaining(own))["tpm"]
        assert left >= 10_000 - counted


async def test_quotas_that_are_used_up_stay_so_while_the_store_is_away(backend: Backend) -> None:
    async with await TenantStore.connect(backend.url) as store:
        admission = Admission(store)
        own = tenant(quota_requests_day=5, quota_images_month=100)
        assert [await attempt(admission, own) for _ in range(3)] == [True] * 3
        backend.kill()
        assert [await attempt(admission, own) for _ in range(5)] == [True] * 2 + [False] * 3
        assert "5 requests per day" in (await refusal(admission, own)).message
        await admission.aclose(0.0)


def test_limits_are_known_by_who_has_them_however_many_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "MOST_KNOWN", 8)
    for number in range(100):  # each is forgotten at once: the next may have its place in memory
        own = replace(tenant(rpm=number), model_limits={MODEL: LimitFields(tpm=number)})
        for _ in range(2):
            assert [limit.most for limit in limits_of(own, MODEL)] == [number, number]
            assert [limit.most for limit in limits_of(own, "another")] == [number]
    assert len(meters._known) <= 8
