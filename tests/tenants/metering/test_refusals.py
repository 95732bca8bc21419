"""Refusals that the store need not repeat, and those that must be asked for again."""

from __future__ import annotations

import asyncio

import pytest

from tenants.live.entitlements import Entitlements
from tenants.metering import refusals
from tenants.metering.admission import Admission
from tenants.metering.limits import Judgement
from tenants.metering.meters import MINUTE_S, Limit, limits_of
from tenants.metering.refusals import ENDED_S, GIVEN_BACK_S, Refusals
from tenants.metering.wanted import Rung, Tokens, Wanted
from tenants.records.prices import FREE
from tenants.store.store import TenantStore
from tests.tenants.requests import MODEL, attempt, tenant


def asking(tokens: int = 0) -> Wanted:
    return Wanted(1, 0, Tokens(tokens, tokens), [Rung(1.0, FREE)])


ONE = asking()


async def scripts_run(store: TenantStore) -> int:
    stats = (await store.execute("INFO", "commandstats")).get("cmdstat_evalsha", {"calls": 0})
    return int(stats["calls"])


@pytest.mark.parametrize(
    ("limits", "request_", "asked"),
    [
        # By how long a refusal is believed: a few of 400 reach the store.
        ({"rpm": 3}, {}, 1),
        ({"quota_requests_day": 3}, {}, 20),
        ({"quota_images_month": 3}, {"images": 1}, 20),
        ({"tpm": 3}, {"tokens": 1}, 20),
        ({"tpm": 3}, {"tokens": 4}, 1),
        ({"concurrency": 0}, {}, 1),
    ],
)
async def test_a_storm_of_requests_that_are_too_many_hardly_reaches_the_store(
    store: TenantStore, admission: Admission, limits: dict[str, int], request_: dict[str, int], asked: int
) -> None:
    own = tenant("storm", **limits)
    while await attempt(admission, own, **request_):
        pass
    assert await admission.drain()
    before = await scripts_run(store)
    refused = [not await attempt(admission, own, **request_) for _ in range(400)]
    assert all(refused)
    assert await scripts_run(store) - before <= asked


async def test_what_another_gateway_gives_back_is_there_after_a_moment(store: TenantStore) -> None:
    """Requests at a time, and tokens that were reserved and not used."""
    here, there = Admission(store), Admission(store)
    for own, request in ((tenant("a", concurrency=1), {}), (tenant("b", tpm=100), {"tokens": 80})):
        lease = there.admit(own, model=MODEL, **request)  # type: ignore[arg-type]
        await lease.__aenter__()
        assert not await attempt(here, own, **request)
        lease.settle(tokens_in=1)
        await lease.__aexit__(None, None, None)
        assert await there.drain()
        await asyncio.sleep(GIVEN_BACK_S + 0.01)
        assert await attempt(here, own, **request)
    await here.aclose()
    await there.aclose()


async def test_an_edited_limit_is_another(admission: Admission) -> None:
    assert await attempt(admission, tenant(rpm=1)) and not await attempt(admission, tenant(rpm=1))
    assert await attempt(admission, tenant(rpm=2)) and not await attempt(admission, tenant(rpm=1))


async def test_a_smaller_request_is_asked_for(admission: Admission) -> None:
    own = tenant(tpm=100, quota_images_day=5)
    assert not await attempt(admission, own, tokens=101)
    assert await attempt(admission, own, tokens=90)
    assert not await attempt(admission, own, tokens=50)
    assert not await attempt(admission, own, images=6)
    assert await attempt(admission, own, tokens=5, images=5)


def found(own: Entitlements, limit: Limit, wait_ms: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times, out of many, at which a refusal is still believed."""
    known, now = Refusals(), 1000.0
    monkeypatch.setattr("tenants.metering.refusals.time.monotonic", lambda: now)
    wanted = asking(6 if wait_ms == -1 else 1)
    known.learn(own.tenant, Judgement(limit, wait_ms), wanted)
    believed = []
    for hundredths in range(0, 7000, 1):
        now = 1000.0 + hundredths / 100
        judgement = known.find(own.tenant, limits_of(own), wanted)
        if judgement is not None:
            assert judgement.wait_ms == (wait_ms if wait_ms == -1 else max(1, wait_ms - hundredths * 10))
            believed.append(hundredths / 100)
    return believed


@pytest.mark.parametrize(
    ("limits", "wait_ms", "believed_s"),
    [
        ({"rpm": 5}, 41_000, 41.0),
        ({"rpm": 0}, -1, MINUTE_S),
        ({"tpm": 5}, 41_000, GIVEN_BACK_S),
        ({"tpm": 5}, 50, 0.05),
        ({"quota_requests_day": 5}, 80_000_000, GIVEN_BACK_S),
        ({"concurrency": 5}, 1000, ENDED_S),
    ],
)
def test_a_refusal_is_believed_as_long_as_nobody_can_give_anything_back(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], wait_ms: int, believed_s: float
) -> None:
    own = tenant(**limits)  # type: ignore[arg-type]
    (limit,) = limits_of(own)
    believed = found(own, limit, wait_ms, monkeypatch)
    assert believed[0] == 0.0 and believed[-1] == pytest.approx(believed_s, abs=0.011)
    assert len(believed) == round(believed[-1] * 100) + 1


def test_an_end_here_makes_room_here_and_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MOST", 3)
    known, own = Refusals(), tenant(concurrency=1, rpm=5)
    rpm, concurrency = limits_of(own)
    known.learn("acme", Judgement(concurrency, 1000), ONE)
    assert known.find("acme", limits_of(own), ONE) is not None
    known.ended("acme")
    assert known.find("acme", limits_of(own), ONE) is None
    for number in range(5):
        known.learn(f"t{number}", Judgement(rpm, 1000), ONE)
    assert [known.find(f"t{number}", (rpm,), ONE) is not None for number in range(5)] == [False] * 2 + [True] * 3


async def test_what_this_gateway_gives_back_is_there_as_soon_as_it_is_booked(admission: Admission) -> None:
    own = tenant(tpm=100, quota_tokens_day=100)
    for _ in range(3):
        async with admission.admit(own, model=MODEL, tokens=80) as lease:
            assert not await attempt(admission, own, tokens=80)
            lease.settle(tokens_in=1)
        assert await admission.drain()
