"""Questions that go together: each is answered as if it had come alone, in its turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from policies.errors import LimitExceeded, Unavailable
from tenants.metering.admission import Admission
from tenants.metering.lease import Lease
from tenants.metering.meters import HeldTo
from tenants.metering.wanted import Tokens
from tenants.records import keyspace
from tenants.store.store import TenantStore
from tests.tenants.requests import MODEL, tenant, total


async def scripts_run(store: TenantStore) -> int:
    stats = (await store.execute("INFO", "commandstats")).get("cmdstat_evalsha", {"calls": 0})
    return int(stats["calls"])


async def enter(*leases: Lease) -> list[Lease | BaseException]:
    return await asyncio.gather(*(lease.__aenter__() for lease in leases), return_exceptions=True)


async def test_a_busy_tenants_requests_are_one_question_and_each_sees_those_before_it(
    store: TenantStore, admission: Admission
) -> None:
    own = tenant(rpm=20, tpm=1000, quota_requests_day=30)
    await enter(admission.admit(tenant("warm"), model=MODEL))
    before = await scripts_run(store)
    leases = [admission.admit(own, model=MODEL, tokens=10) for _ in range(24)]
    outcomes = await enter(*leases)
    assert await scripts_run(store) - before == 1
    assert [isinstance(outcome, LimitExceeded) for outcome in outcomes] == [False] * 20 + [True] * 4
    left = [lease.headers()["x-ratelimit-remaining-requests"] for lease in leases]
    assert left == [str(number) for number in [*range(19, -1, -1), *[0] * 4]]
    assert leases[19].headers()["x-ratelimit-remaining-tokens"] == "800"


async def test_of_several_amounts_what_is_left_is_given_out_in_turn(admission: Admission) -> None:
    own = tenant(tpm=100, concurrency=3)
    wanted = [Tokens(60, 60), Tokens(60, 60), Tokens(60, 30), Tokens(1, 1), Tokens(1, 1)]
    leases = [admission.admit(own, model=MODEL, tokens=tokens) for tokens in wanted]
    outcomes = await enter(*leases)
    assert [isinstance(outcome, LimitExceeded) for outcome in outcomes] == [False, True, False, True, True]
    assert (leases[0].tokens, leases[2].tokens) == (60, 40)
    assert await admission.remaining(own) == {"tpm": 0, "concurrency": 1}


async def test_other_tenants_and_other_limits_are_other_questions_and_one_that_is_broken_fails_alone(
    store: TenantStore, admission: Admission
) -> None:
    await store.execute("HSET", f"{keyspace.window('broken')}:requests", "sum", "x", "from", 1, "last", 1)
    owns = [tenant("a", rpm=1), tenant("broken", rpm=9), tenant("a", rpm=1), tenant("a", rpm=2), tenant("b", rpm=1)]
    outcomes = await enter(*(admission.admit(own, model=MODEL) for own in owns))
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == ["Lease", "Unavailable", "LimitExceeded", "Lease", "Lease"]
    assert isinstance(outcomes[1], Unavailable) and outcomes[1].code == "broken_record"


async def test_a_client_that_left_before_its_question_was_sent_takes_nothing_and_the_others_go_on(
    store: TenantStore, admission: Admission
) -> None:
    own = tenant(rpm=3)
    tasks = [asyncio.create_task(admission.admit(own, model=MODEL).__aenter__()) for _ in range(5)]
    await asyncio.sleep(0)
    for task in tasks[:2]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome).__name__ for outcome in outcomes] == ["CancelledError"] * 2 + ["Lease"] * 3
    assert await admission.drain()
    assert (await total(store))["requests"] == 0  # of those under way nothing is booked yet
    assert (await admission.remaining(own))["rpm"] == 0


@pytest.mark.parametrize("count", [1, 33, 300])
async def test_as_many_as_come_are_answered(admission: Admission, count: int) -> None:
    own = tenant(rpm=count - 1) if count > 1 else tenant(rpm=1)
    outcomes = await enter(*(admission.admit(own, model=MODEL) for _ in range(count)))
    assert sum(isinstance(outcome, Lease) for outcome in outcomes) == max(1, count - 1)


async def test_each_waiting_request_gets_an_error_of_its_own_when_the_store_is_gone(admission: Admission) -> None:
    async def lost(*_: object, **__: object) -> list[object]:
        raise Unavailable("away") from ConnectionError("reset")

    admission._store.run_many = lost  # type: ignore[method-assign]
    held_to = tenant(rpm=5)
    questions = [
        admission.questions.ask("acme", HeldTo(), f"{number}", admission.admit(held_to, model=MODEL)._wanted, 1.0)
        for number in range(3)
    ]
    errors = await asyncio.gather(*questions, return_exceptions=True)
    assert all(isinstance(e, Unavailable) and isinstance(e.__cause__, ConnectionError) for e in errors)
    assert len({id(error) for error in errors}) == 3


async def test_a_lone_request_is_asked_in_its_callers_own_task(store: TenantStore, admission: Admission) -> None:
    tasks, run_many = [], store.run_many

    async def seen(*arguments: Any, **words: Any) -> list[Any]:
        tasks.append(asyncio.current_task())
        return await run_many(*arguments, **words)

    store.run_many = seen  # type: ignore[method-assign]
    await enter(*(admission.admit(tenant(rpm=9), model=MODEL) for _ in range(2)))
    assert asyncio.current_task() not in tasks
    await admission.admit(tenant(rpm=9), model=MODEL).__aenter__()
    assert tasks[-1] is asyncio.current_task() and len(tasks) == 2


@pytest.mark.parametrize("turns", range(9))
async def test_a_lone_client_that_leaves_at_any_moment_keeps_nothing_and_holds_up_nobody(
    store: TenantStore, admission: Admission, turns: int
) -> None:
    own = tenant(concurrency=1, rpm=100)
    await enter(admission.admit(tenant("warm"), model=MODEL))
    leaving = asyncio.create_task(admission.admit(own, model=MODEL).__aenter__())
    for _ in range(turns):
        await asyncio.sleep(0)
    followers = [asyncio.create_task(admission.admit(own, model=MODEL).__aenter__()) for _ in range(2)]
    leaving.cancel()
    (left, *_) = await asyncio.gather(leaving, *followers, return_exceptions=True)
    if isinstance(left, Lease):
        await left.__aexit__(None, None, None)
    for task in followers:
        if task.exception() is None:
            await task.result().__aexit__(None, None, None)
    assert await admission.drain()
    assert not any(admission.questions._under_way.values())
    async with admission.admit(own, model=MODEL):
        assert (await admission.remaining(own))["concurrency"] == 0
    assert await admission.drain()
    assert (await store.execute("ZCARD", keyspace.running("acme"))) == 0


async def test_a_question_that_cannot_be_put_fails_its_clients_and_nobody_waits_for_ever(admission: Admission) -> None:
    def broken(*_: object, **__: object) -> str:
        raise TypeError("no such limit")

    admission.questions._argument = broken  # type: ignore[method-assign]
    outcomes = await enter(*(admission.admit(tenant(rpm=5), model=MODEL) for _ in range(3)))
    assert [type(outcome) for outcome in outcomes] == [TypeError] * 3
    assert not any(admission.questions._under_way.values())
