"""What becomes of a settlement by what the store knew and what it says: nothing lost, nothing twice, nobody held up."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import ClusterDownError, ResponseError

from policies.errors import Unavailable
from tenants.metering.admission import Admission
from tenants.metering.journal import Journal
from tenants.metering.rejections import Rejections
from tenants.metering.settlement import STEPS, Answer, Settlement, State, Step, answer_of, today
from tenants.metering.settler import Settler
from tenants.metering.usage import read_days
from tenants.records import keyspace
from tenants.store.store import TenantStore
from tests.tenants.conftest import until
from tests.tenants.requests import MODEL, attempt, settlement, tenant, total


def test_every_state_has_a_step_for_every_answer() -> None:
    for state, answer in itertools.product(State, Answer):
        assert isinstance(STEPS[state][answer], Step)
    # What may be booked twice is given up; what certainly is not is never.
    given_up = {(state, answer) for state in State for answer in Answer if STEPS[state][answer] is Step.LOST}
    assert {answer for _, answer in given_up} == {Answer.MISSING}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("known", ["live", "lapsed", "settled", "nothing"])
@pytest.mark.parametrize("sent_s", [0, 60, 8 * 86_400])
async def test_it_is_booked_once_whatever_the_store_knows_and_however_often_it_is_sent(
    store: TenantStore, admission: Admission, state: State, known: str, sent_s: int
) -> None:
    """`sent_s` ago it was sent and no answer came; 0: it was not."""
    lease = await admission.admit(tenant(), model=MODEL, images=4, tokens=50, lease_s=0.01).__aenter__()
    undone = state in (State.UNDONE, State.RETURNED)
    amounts = (0, 0, 0, 0) if undone else (1, 2, 10, 20)
    own = Settlement(lease.sold, lease.id, int(time.time()), state, *amounts)
    key = f"{keyspace.request('acme')}:{lease.id}"
    match known:
        case "lapsed":
            await asyncio.sleep(0.02)
            await admission.admit(tenant("acme", tpm=1), model="other").__aenter__()
            assert (await store.execute("GET", key)).startswith(b"lapsed")
        case "settled":
            admission.settler.put(own)
            assert await admission.drain()
        case "nothing":
            await store.execute("FLUSHALL")
    own.sent_at = time.time() - sent_s if sent_s else 0.0
    for _ in range(3):
        admission.settler.put(own)
        assert await admission.drain()
    (day,) = await read_days(store, "acme", 1)
    used = day.by_model.get(MODEL, day.total)
    lost = known == "nothing" and sent_s > 7 * 86_400
    booked = (0, 0, 0, 0) if lost else amounts
    assert tuple(used[name] for name in ("requests", "images", "tokens_in", "tokens_out")) == booked
    assert day.total["tokens_reserved"] == 0
    events = await store.execute("XLEN", keyspace.events("acme"))
    assert events == int(booked != (0, 0, 0, 0))


async def test_usage_that_was_sent_and_whose_lease_is_gone_is_booked(store: TenantStore, admission: Admission) -> None:
    """A failover's usual order: the settlement goes out, the primary dies with it, the replica knows of neither."""
    async with admission.admit(tenant(), model=MODEL, tokens=50) as lease:
        lease.settle(tokens_in=3, tokens_out=4)
        run_many, failed = store.run_many, []

        async def dies(*words: Any, **options: Any) -> Sequence[Any]:
            if not failed:
                failed.append(1)
                await store.execute("FLUSHALL")
                raise Unavailable("away") from ConnectionError("reset")
            return await run_many(*words, **options)

        store.run_many = dies  # type: ignore[method-assign]
    assert await admission.drain() and failed
    counters = await total(store)
    assert (counters["requests"], counters["tokens_in"], counters["tokens_out"]) == (1, 3, 4)


@pytest.mark.parametrize(
    ("key", "field"),
    [
        (keyspace.usage_period("acme", today()), "requests"),
        (keyspace.usage_period("acme", today()), f"tokens_out:{MODEL}"),
        (keyspace.usage_period("acme", today()[:7]), "tokens_in"),
        (keyspace.sold("acme", today()), f"requests:{MODEL}:0.9:silver:{'ab' * 6}"),
        (keyspace.reserved("acme"), "tokens"),
        (f"{keyspace.window('acme')}:tokens", "sum"),
        (keyspace.running("acme"), ""),
        (keyspace.events("acme"), ""),
    ],
)
@pytest.mark.parametrize("held", [False, True])
async def test_one_counter_that_is_no_number_neither_loses_usage_nor_doubles_it(
    store: TenantStore, admission: Admission, monkeypatch: pytest.MonkeyPatch, key: str, field: str, held: bool
) -> None:
    monkeypatch.setattr("tenants.metering.settler.APART_PAUSE_S", 0.05)
    own = tenant(tpm=1000)
    lease = await admission.admit(own, model=MODEL, tokens=50).__aenter__()
    record = f"{keyspace.request('acme')}:{lease.id}"
    before, found = await store.execute("DUMP", key), await store.execute("GET", record)
    if field:
        await store.execute("HSET", key, field, "x")
    else:
        await store.execute("SET", key, "x")
    if held:
        lease._state = State.UNSURE
    lease.settle(tokens_in=3, tokens_out=4)
    await lease.__aexit__(None, None, None)
    other = Admission(store)
    assert await attempt(other, tenant("other"), images=1) and await other.drain()
    await other.aclose()
    assert (await total(store, "other"))["images"] == 1
    await until(lambda: admission.settler._apart)
    assert await store.execute("GET", record) == found, "nothing was written"
    if before is None:
        await store.execute("DEL", key)
    else:  # at once: meanwhile the next attempt may come
        await store.execute("RESTORE", key, 0, before, "REPLACE")

    async def booked() -> bool:
        return (await total(store))["requests"] > 0

    await until(booked)
    await until(lambda: not admission.settler._apart and not len(admission.settler))
    counters = await total(store)
    assert (counters["requests"], counters["tokens_in"], counters["tokens_out"]) == (1, 3, 4)
    assert counters["tokens_reserved"] == 0
    assert (await admission.remaining(own))["tpm"] == (950 if key.startswith("window") and before is None else 993)
    await admission.aclose()


class Slots:
    """A Cluster in the place of a store: some slots have no server, and say so."""

    clustered = True

    def __init__(self) -> None:
        self.dead: set[int] = set()
        self.booked: list[str] = []
        self.batches: list[int] = []

    async def run_many(self, script: Any, calls: Sequence[Any], *, partial: bool = False) -> list[Any]:
        self.batches.append(sum(len(json.loads(args[0])["requests"]) for _, args in calls))
        await asyncio.sleep(0)
        return [self._book(keys, args) for keys, args in calls]

    def _book(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        if key_slot(keys[0].encode()) in self.dead:
            return ClusterDownError("CLUSTERDOWN Hash slot not served")
        ids = [request[0] for request in json.loads(args[0])["requests"]]
        self.booked += ids
        return [1] * len(ids)


@pytest.mark.parametrize("dead", [70, 5000])
async def test_settlements_of_a_dead_slot_hold_up_nobody_elses(dead: int) -> None:
    store: Any = Slots()
    store.dead = {key_slot(b"{gone}")}
    settler = Settler(store)
    for i in range(dead):
        settler.put(settlement(i, state=State.ADMITTED, name="gone"))
    names = [f"t{i}" for i in range(200)]
    for i, name in enumerate(names):
        settler.put(settlement(dead + i, state=State.ADMITTED, name=name))
    await until(lambda: len(store.booked) == len(names))
    await until(lambda: len(settler) == dead)  # but for those that are on their way just now
    # Those that are well go on meanwhile, many at a time.
    settler.put(settlement(10**6, name="t0"))
    await until(lambda: len(store.booked) == len(names) + 1)
    store.dead.clear()
    assert await settler.drain(20.0)
    assert sorted(store.booked) == sorted({*store.booked}) and len(store.booked) == dead + 201
    assert max(store.batches) == 64
    await settler.aclose(1.0)


def test_an_answer_is_known_by_what_it_is() -> None:
    assert answer_of(ResponseError("BROKENCOUNTER usage:{a} requests")) is Answer.BROKEN
    assert answer_of(ResponseError("WRONGTYPE Operation against a key")) is Answer.BROKEN
    assert answer_of(ClusterDownError("CLUSTERDOWN Hash slot not served")) is Answer.REFUSING
    lost, unsent = Unavailable("away"), Unavailable("away")
    lost.__cause__ = ConnectionError()
    assert (answer_of(lost), answer_of(unsent)) == (Answer.SILENT, Answer.UNSENT)
    assert [answer_of(code) for code in (1, 0, -1)] == [Answer.BOOKED, Answer.BEFORE, Answer.MISSING]


def test_lines_of_another_store_or_version_stay_and_the_others_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for store, count in (("here", 2), ("elsewhere", 3)):
        journal = Journal(tmp_path, store=store)
        for i in range(count):
            journal.append(settlement(i))
        journal.close(keep=True)
    mixed = next(path for path in tmp_path.glob("*.jsonl") if '"here"' in path.read_text())
    other = '{"tenant": "acme", "lease_id": "ab", "requests": 1}\n{"version": 3, "store": "here", "what": 1}\n'
    mixed.write_text(mixed.read_text() + other)
    journal = Journal(tmp_path, store="here")
    for _ in range(2):
        taken = [own.id for entries in journal.orphans() for own in entries]
        assert taken in ([f"{i:024x}" for i in range(2)], [])
    left = sorted((path.read_text() for path in tmp_path.glob("*.jsonl")), key=len)
    assert left[0] == other and len(left[1].splitlines()) == 3
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    assert caplog.text.count("stay there") == 2
    (entries,) = Journal(tmp_path, store="elsewhere").orphans()
    assert len(entries) == 3 and all(own.sent_at for own in entries)


async def test_a_store_names_itself_and_what_is_held_for_another_is_not_booked(
    store: TenantStore, tmp_path: Path
) -> None:
    name = await store.identity()
    assert len(name) == 16 and await store.identity() == name
    for other in (name, "f" * 16):
        journal = Journal(tmp_path, store=other)
        journal.append(settlement(int(other == name)))
        journal.close(keep=True)
    admission = Admission(store, held_dir=tmp_path)
    await admission.start()

    async def booked() -> bool:
        return (await total(store))["requests"] == 1

    await until(booked)
    await admission.aclose()
    assert (await total(store))["requests"] == 1
    (kept,) = tmp_path.glob("*.jsonl")
    assert json.loads(kept.read_text())["store"] == "f" * 16


async def test_a_storm_beyond_a_full_minute_stays_in_the_gateway_until_the_minute_or_the_limit_changes(
    store: TenantStore, admission: Admission
) -> None:
    own = tenant(rpm=10)
    now = int((await store.execute("TIME"))[0])
    window = (f"{keyspace.window('acme')}:requests", "sum", 10, "from", now - 60, "last", now - 59, now - 59, 10)
    await store.execute("HSET", *window)
    assert not await attempt(admission, own)
    before = await scripts(store)
    assert not any([await attempt(admission, own) for _ in range(200)])
    assert await scripts(store) - before < 20  # one a second
    assert await attempt(admission, tenant(rpm=11))
    await until(lambda: attempt(admission, own))
    assert await admission.drain()
    assert (await total(store))["rejected"] > 200


async def scripts(store: TenantStore) -> int:
    """Runs of scripts, by the server's own count."""
    stats = await store.execute("INFO", "commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ("eval", "evalsha"))


async def test_refusals_are_counted_and_cost_the_store_no_write_each(store: TenantStore, admission: Admission) -> None:
    own = tenant(quota_requests_day=1, key={"rpm": 5})
    assert await attempt(admission, own) and await admission.drain()
    before = await writes(store)
    for _ in range(100):
        assert not await attempt(admission, own)
    assert await writes(store) - before < 100
    assert await admission.drain()
    (day,) = await read_days(store, "acme", 1)
    assert day.total["rejected"] == day.by_model[MODEL]["rejected"] == 100
    assert await store.execute("XLEN", keyspace.events("acme")) == 1


async def writes(store: TenantStore) -> int:
    """Commands that change something, by the server's own count."""
    stats = await store.execute("INFO", "commandstats")
    names = ("hset", "hincrby", "hdel", "zadd", "zrem", "set", "del", "expire", "xadd", "xtrim")
    return sum(int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in names)


async def test_one_settlement_of_a_broken_day_does_not_set_its_tenants_others_apart(
    store: TenantStore, caplog: pytest.LogCaptureFixture
) -> None:
    day_before = int(time.time()) - 86_400
    broken = keyspace.usage_period("acme", time.strftime("%Y-%m-%d", time.gmtime(day_before)))
    await store.execute("HSET", broken, "requests", "junk")
    settler = Settler(store)
    for i in range(40):
        settler.put(settlement(i))
    late = settlement(99)
    late.at = day_before
    settler.put(late)
    assert await settler.drain(20.0)
    assert (await total(store))["requests"] == 40
    assert [own.id for _, own in settler._apart] == [late.id]
    assert caplog.text.count("until its counters are mended") == 1
    await settler.aclose(0.0)


async def test_a_busy_tenants_settlements_are_booked_by_few_scripts(store: TenantStore, admission: Admission) -> None:
    own = tenant(tpm=10**6, quota_images_day=10**6)
    leases = [await admission.admit(own, model=MODEL, tokens=10, images=1).__aenter__() for _ in range(64)]
    await store.execute("CONFIG", "RESETSTAT")
    for number, lease in enumerate(leases):
        lease.settle(tokens_in=number % 3, tokens_out=1)
        await lease.__aexit__(None, None, None)
    assert await admission.drain()
    assert (await store.execute("INFO", "commandstats"))["cmdstat_evalsha"]["calls"] <= 4
    counters = await total(store)
    assert [counters[name] for name in ("requests", "images", "tokens_in", "tokens_out")] == [64, 64, 63, 64]
    assert await admission.remaining(own) == {"tpm": 10**6 - 127, "quota_images_day": 10**6 - 64}
    assert await store.execute("XLEN", keyspace.events("acme")) == 64
    assert counters["tokens_reserved"] == 0 and not await store.execute("ZCARD", keyspace.running("acme"))


async def test_rejections_of_a_dead_node_are_kept_and_the_others_are_counted_once() -> None:
    sent: list[str] = []

    class Half:
        async def pipeline(self, commands: Sequence[Any], *, partial: bool) -> list[Any]:
            answers: list[Any] = [Unavailable("away") if "dead" in command[1] else 1 for command in commands]
            sent.extend(c[1] for c, answer in zip(commands, answers, strict=True) if answer == 1 and c[2] == "rejected")
            return answers

    store: Any = Half()
    rejections = Rejections(store)
    for name in ("dead", "well", "dead"):
        rejections.add(name, ("",), MODEL)
    for now in (1.0, 2.0, 3.0):
        await rejections.send(now, 400)
    assert len(sent) == 2 and dict(rejections._counted) == {("dead", "", MODEL): 2}
