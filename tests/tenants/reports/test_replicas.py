"""Jobs and reports of running models in the store: who may refit when, and what replicas say together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from policies.audit import LevelReport, Tally
from tenants.changes.edits import AdminError
from tenants.command import show
from tenants.reports.jobs import Job
from tenants.reports.levels import drifted, merged
from tenants.reports.replicas import ReplicaReport, ServedModels
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend


@pytest_asyncio.fixture
async def other(store: TenantStore, shared_backend: Backend) -> AsyncIterator[TenantStore]:
    """Another operator's connection."""
    async with await TenantStore.connect(shared_backend.url, timeout_s=5.0) as connected:
        yield connected


async def finished(served: ServedModels) -> Job:
    """A refit that was asked for and is done."""
    await served.publish(ReplicaReport("m", "r1", "key", 0, 600))
    done = replace(await served.ask("m", "live", who="Old"), state="done")
    assert await served.tell(done)
    return done


async def test_of_two_that_calibrate_at_once_the_second_is_told_who_and_when(
    store: TenantStore, other: TenantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find the last refit done; the first asks between the second's look and its own asking."""
    ann, bob = ServedModels(store), ServedModels(other)
    await finished(ann)
    execute, asked = other.execute, []

    async def late(*command: Any, **kind: Any) -> Any:
        answer = await execute(*command, **kind)
        if command == ("GET", "calibrate:m") and not asked:
            asked.append(await ann.ask("m", "live", who="Ann"))
        return answer

    monkeypatch.setattr(other, "execute", late)
    with pytest.raises(AdminError, match=r"under way, asked for by Ann at 20\d\d-\d\d-\d\dT.*Z \(waiting"):
        await bob.ask("m", "live", who="Bob")
    assert await ann.job("m") == asked[0]


async def test_of_many_that_ask_at_once_one_is_served(store: TenantStore, other: TenantStore) -> None:
    await finished(ServedModels(store))
    asks = [ServedModels(s).ask("m", "live", who=f"{n}") for n in range(8) for s in (store, other)]
    answers = await asyncio.gather(*asks, return_exceptions=True)
    served = [answer for answer in answers if isinstance(answer, Job)]
    refused = [answer for answer in answers if isinstance(answer, AdminError)]
    assert len(served) == 1 and len(refused) == 15
    assert await ServedModels(store).job("m") == served[0]


async def test_how_a_refit_ended_is_told_although_another_has_begun(store: TenantStore) -> None:
    served = ServedModels(store)
    first = await finished(served)
    second = await served.ask("m", "live", who="Bob")
    assert await served.follow(first) == first and await served.follow(second) == second
    assert not await served.tell(replace(first, state="running")), "a job that has ended writes over no other"
    await served.call_off(first)
    assert await served.job("m") == second
    await served.call_off(second)
    assert await served.job("m") is None is await served.follow(second)


def report(replica: str, calibration: str, version: int, agreed: int = 70) -> ReplicaReport:
    """100 inputs at 0.7, so many of them delivered."""
    tally = Tally.of_groups([1] * 100, [1] * agreed + [0] * (100 - agreed))
    return ReplicaReport("m", replica, calibration, version, 100, (LevelReport(0.7, tally, Tally()),))


def test_only_replicas_of_one_calibration_are_taken_together_and_the_others_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two of the refit, one that has not taken it, one of another configuration with a like version."""
    reports = [report("r1", "b", 2), report("r2", "b", 2, 60), report("r3", "b", 1, 20), report("r4", "a", 2, 99)]
    found = merged(reports)
    assert [(g.calibration, g.version, g.replicas, g.behind) for g in found] == [
        ("a", 2, 1, False),
        ("b", 2, 2, False),
        ("b", 1, 1, True),
    ]
    assert [[(own.delivered.answers, own.delivered.agreed) for own in g.levels] for g in found] == [
        [(100, 99)],
        [(200, 130)],
        [(100, 20)],
    ]
    show.levels({"m": found}, as_json=False)
    table = capsys.readouterr().out
    assert "2 replicas, calibration b version 2 " in table
    assert "1 replica, calibration b version 1, behind" in table and "1 replica, calibration a version 2 " in table
    lines = [show.drift(*level) for level in drifted({"m": reports})]
    assert len(lines) == 2 and "(1 replica, calibration b version 1, behind): delivers 0.200" in lines[1]


def test_replicas_that_serve_the_same_are_one_line_without_a_word_of_calibrations(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show.levels({"m": merged([report("r1", "a", 1), report("r2", "a", 1)]), "none": []}, as_json=False)
    table = capsys.readouterr().out
    assert table.count("0.700 ± ") == 1 and "2 replicas" in table and "calibration" not in table
    show.levels({"m": merged([replace(report("r1", "a", 1), levels=())])}, as_json=False)
    assert "no level below 1 in use" in capsys.readouterr().out


def first(replica: str, model: str = "m") -> Job:
    """A first calibration that two ids of one model share."""
    return Job(model, replica, "pictures", "first start", first="key")


async def test_of_many_replicas_that_start_at_once_one_calibrates(store: TenantStore, other: TenantStore) -> None:
    claims = [ServedModels(s).claim(first(f"{n}", f"m{n % 2}")) for n in range(8) for s in (store, other)]
    took = await asyncio.gather(*claims)
    assert len({job.id for job in took}) == 1
    assert await ServedModels(store).job("key") == took[0]
    assert await ServedModels(store).job("m0") is None, "a refit of the model is another job"


async def test_the_lease_of_one_that_is_gone_runs_out_and_another_takes_over(
    store: TenantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenants.reports.replicas.JOB_TTL_S", 1)
    served = ServedModels(store)
    gone = await served.claim(first("gone"))
    for _ in range(3):  # who tells keeps it
        await asyncio.sleep(0.5)
        assert await served.tell(replace(gone, state="running")) and (await served.claim(first("next"))).id == gone.id
    await asyncio.sleep(1.2)
    taken = await served.claim(first("next"))
    assert taken.replica == "next"
    assert not await served.tell(replace(gone, state="done")), "it learns that it has lost the job"


async def test_a_first_calibration_that_failed_is_begun_again_by_who_starts_later_and_else_after_a_while(
    store: TenantStore,
) -> None:
    served = ServedModels(store)
    failed = replace(await served.claim(first("r1")), state="failed", error="no room")
    assert await served.tell(failed)
    assert await served.claim(first("r1")) == failed == await served.claim(first("r2"))
    assert 100 < await store.execute("TTL", "calibrate:key") <= 120
    again = await served.claim(first("r3"), again=True)
    assert again.replica == "r3" and await served.claim(first("r4"), again=True) == again


async def test_the_calibration_that_is_stored_first_stays(store: TenantStore) -> None:
    served = ServedModels(store)
    assert await served.place_calibration("key", '{"rows": 1}') == 1
    assert await served.place_calibration("key", '{"rows": 2}') == 2
    assert await store.load_calibration("key") == {"rows": 1}
    assert await served.replace_calibration("key", '{"rows": 3}') == 3
    assert await store.load_calibration("key") == {"rows": 3}
