"""What was sold: usage by model, level, tier and key, and an event for each request, whatever happened on its way."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest

from policies.errors import DeadlineExceeded, InvalidRequest, LimitExceeded, ServiceError, Unavailable
from tenants.admin.admin import TenantAdmin
from tenants.metering.admission import Admission
from tenants.metering.events import Event, read_events
from tenants.metering.settlement import Settlement, State
from tenants.metering.usage import read_days, read_usage
from tenants.records import keyspace
from tenants.records.schema import RecordError
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend, Run, populate
from tests.tenants.requests import MODEL, settlement, tenant, total

TODAY = datetime.now(UTC).date()


async def events(store: TenantStore, *tenants: str, since: date = TODAY - timedelta(days=2)) -> list[Event]:
    return [event async for event in read_events(store, since, TODAY + timedelta(days=1), tenants)]


async def test_usage_and_events_tell_model_level_tier_and_key(store: TenantStore, admission: Admission) -> None:
    own = tenant()
    for level, model, focused in ((0.9, "a", False), (0.9, "a", True), (0.7, "a", False), (0.9, "org/b", False)):
        async with admission.admit(own, model=model, images=2, tokens=50, level=level, focused=focused) as lease:
            lease.settle(tokens_in=3, tokens_out=4)
    assert await admission.drain()
    (day,) = await read_days(store, "acme", 1)
    (month,) = await read_usage(store, "acme", day.period[:7])
    for usage in (day, month):
        sold = {(s.model, s.level, s.tier, s.key): (s.counts["requests"], s.counts["images"]) for s in usage.sold}
        names = {("a", "0.9"): (2, 4), ("a", "0.7"): (1, 2), ("org/b", "0.9"): (1, 2)}
        assert sold == {(*name, "silver", own.key_id): counts for name, counts in names.items()}
    found = await events(store)
    assert [(e.model, e.level, e.focus) for e in found] == [
        ("a", 0.9, False), ("a", 0.9, True), ("a", 0.7, False), ("org/b", 0.9, False),
    ]  # fmt: skip
    assert {(e.tenant, e.key, e.tier, e.requests, e.images, e.tokens_in, e.tokens_out, e.status) for e in found} == {
        ("acme", own.key_id, "silver", 1, 2, 3, 4, "served")
    }
    assert len({e.id for e in found}) == 4 and all(e.ms >= 0 for e in found)


@pytest.mark.parametrize(
    ("error", "status", "billed"),
    [
        (DeadlineExceeded("late"), "late", False),
        (Unavailable("queue full"), "away", False),
        (ServiceError("a fault"), "failed", False),
        (RuntimeError("a bug"), "failed", False),
        (InvalidRequest("no picture"), "refused", True),
        (asyncio.CancelledError(), "left", True),
    ],
)
async def test_what_we_failed_at_is_free_and_counted_apart(
    store: TenantStore, admission: Admission, error: BaseException, status: str, billed: bool
) -> None:
    own = tenant(quota_requests_day=5, quota_tokens_month=1000, quota_images_day=9)
    with pytest.raises(type(error)):
        async with admission.admit(own, model=MODEL, images=3, tokens=100) as lease:
            lease.settle(tokens_in=7, tokens_out=9, images=2)
            raise error
    assert await admission.drain()
    counters = await total(store)
    used = (counters["requests"], counters["images"], counters["tokens_in"] + counters["tokens_out"])
    assert used == ((1, 2, 16) if billed else (0, 0, 0))
    assert counters["failed"] == (not billed) and counters["tokens_reserved"] == 0
    left = {"quota_requests_day": 4, "quota_tokens_month": 984, "quota_images_day": 7}
    full = {"quota_requests_day": 5, "quota_tokens_month": 1000, "quota_images_day": 9}
    assert await admission.remaining(own) == (left if billed else full)
    (event,) = await events(store)
    assert (event.status, event.requests) == (status, int(billed))


@pytest.mark.parametrize(
    ("error", "status", "billed"),
    [
        (DeadlineExceeded("late"), "late", True),
        (Unavailable("stopped"), "away", False),
        (RuntimeError(), "failed", False),
    ],
)
async def test_a_stream_that_breaks_is_free_unless_its_client_asked_for_more_than_fits_the_deadline(
    store: TenantStore, admission: Admission, error: Exception, status: str, billed: bool
) -> None:
    async with admission.admit(tenant(), model=MODEL, tokens=100) as lease:
        lease.settle(tokens_in=7, tokens_out=9)
        lease.broke(error)
    assert await admission.drain()
    counters = await total(store)
    assert (counters["requests"], counters["tokens_out"], counters["failed"]) == ((1, 9, 0) if billed else (0, 0, 1))
    (event,) = await events(store)
    assert event.status == status


async def test_every_request_is_one_event_through_an_outage_and_however_often_it_is_sent(backend: Backend) -> None:
    async with await TenantStore.connect(backend.url) as store:
        # A server that is killed may lose what it has answered, where its file waits for the disk.
        await store.execute("CONFIG", "SET", "appendfsync", "always")
        admission = Admission(store)
        used: Counter[str] = Counter()

        async def ask(i: int) -> None:
            async with admission.admit(tenant(), model=MODEL, level=(0.7, 0.9)[i % 2], tokens=50) as lease:
                lease.settle(tokens_in=i, tokens_out=2)
            used.update(requests=1, tokens_in=i, tokens_out=2)

        await asyncio.gather(*(ask(i) for i in range(20)))
        backend.kill()
        await asyncio.gather(*(ask(i) for i in range(20)))
        backend.start()
        await asyncio.gather(*(ask(i) for i in range(20)))
        assert await admission.drain(20.0)
        again = settlement(1, state=State.ADMITTED, requests=1)
        again.sent_at = time.time()
        for _ in range(3):
            admission.settler.put(again)
            assert await admission.drain()
        used.update(requests=1)
        found = await events(store)
        assert len(found) == len({e.id for e in found}) == used["requests"] == 61
        counters = await total(store)
        for name, amount in used.items():
            assert counters[name] == amount == sum(getattr(e, name) for e in found)
        (day,) = await read_days(store, "acme", 1)
        assert sum(s.counts["requests"] for s in day.sold) == 61
        await admission.aclose()


@pytest.mark.parametrize(
    ("limits", "most"),
    [({"rpm": 90}, 90), ({"tpm": 900}, 90), ({"quota_requests_day": 90}, 90), ({"quota_tokens_hour": 905}, 90)],
)
async def test_no_limit_is_exceeded_and_usage_by_level_is_what_64_clients_of_two_gateways_counted(
    shared_backend: Backend, store: TenantStore, admission: Admission, limits: dict[str, int], most: int
) -> None:
    own, answered = tenant(**limits), Counter[str]()
    async with await TenantStore.connect(shared_backend.url, timeout_s=5.0) as other:
        second = Admission(other)

        async def client(i: int) -> None:
            for turn in range(6):
                level = (0.7, 0.9)[(i + turn) % 2]
                try:
                    async with (admission, second)[i % 2].admit(own, model=MODEL, tokens=10, level=level) as lease:
                        await asyncio.sleep(0)
                        lease.settle(tokens_in=4, tokens_out=6)
                    answered[f"{level:g}"] += 1
                except LimitExceeded:
                    answered["refused"] += 1

        await asyncio.gather(*(client(i) for i in range(64)))
        assert await admission.drain(20.0) and await second.drain(20.0)
        await second.aclose()
    assert answered["0.7"] + answered["0.9"] == most and sum(answered.values()) == 6 * 64
    (day,) = await read_days(store, "acme", 1)
    assert {s.level: s.counts["requests"] for s in day.sold} == {k: answered[k] for k in ("0.7", "0.9")}
    assert day.total["tokens_in"] + day.total["tokens_out"] == 10 * day.total["requests"]
    assert day.total["rejected"] == answered["refused"] and day.total["tokens_reserved"] == 0
    assert Counter(f"{event.level:g}" for event in await events(store)) == answered - Counter(refused=1000)


async def test_a_stream_of_events_is_capped(store: TenantStore, admission: Admission) -> None:
    old = settlement(0, state=State.HELD)
    for i in range(300):
        admission.settler.put(Settlement(old.sold, f"{i:024x}", int(time.time()), State.HELD, 1))
    assert await admission.drain(20.0)
    key = keyspace.events("acme")
    assert await store.execute("XLEN", key) == 300
    # Far too many already: the next one trims.
    script = "for i = 1, 110000 do redis.call('XADD', KEYS[1], '*', 'id', i) end"
    await store.execute("EVAL", script, 1, key)
    admission.settler.put(settlement(999))
    assert await admission.drain()
    assert 100_000 <= await store.execute("XLEN", key) <= 101_000
    assert 34 * 86_400 < await store.execute("TTL", key) <= 35 * 86_400


async def test_usage_is_exported_as_csv_and_json_lines_for_all_tenants_and_a_period(
    store: TenantStore, admin: TenantAdmin, admission: Admission, tenants: Run, invoke: Run
) -> None:
    await populate(admin, "acme")
    await populate(admin, "other")
    now = int(time.time())
    for name, days in (("acme", 0), ("acme", 3), ("other", 0)):
        sold = settlement(0, name=name).sold
        admission.settler.put(Settlement(sold, f"{days:024x}", now - days * 86_400, State.HELD, 1, 2, 3, 4))
    assert await admission.drain()
    today, before = TODAY.isoformat(), (TODAY - timedelta(days=3)).isoformat()
    rows = list(csv.DictReader(io.StringIO(await tenants("usage", "export", "--from", today))))
    assert [(row["tenant"], row["images"], row["level"]) for row in rows] == [
        ("acme", "2", "0.9"),
        ("other", "2", "0.9"),
    ]
    lines = await tenants("usage", "export", "acme", "--format", "jsonl", "--from", before, "--to", before)
    (event,) = map(json.loads, lines.splitlines())
    assert event["id"] == f"{3:024x}" and event["at"].startswith(before) and event["focus"] is False
    assert len((await tenants("usage", "export", "--from", before)).splitlines()) == 4
    wrong = await invoke("usage", "export", "--from", today, "--to", before)
    assert wrong.exit_code == 1 and "--from must not be after --to" in wrong.output
    await store.execute("XADD", keyspace.events("acme"), "*", "id", "x")
    wrong = await invoke("usage", "export", "--from", today)
    assert wrong.exit_code == 1 and "events:{acme}" in wrong.output and "is no event" in wrong.output
    with pytest.raises(RecordError):
        await events(store)


async def test_usage_is_shown_by_level_and_a_tenant_may_be_called_export(
    store: TenantStore, admin: TenantAdmin, admission: Admission, tenants: Run
) -> None:
    await populate(admin, "export")
    for level in (0.7, 0.9):
        async with admission.admit(tenant("export"), model="resnet", level=level):
            pass
    assert await admission.drain()
    table = await tenants("usage", "show", "export")
    rows = [line.split() for line in table.splitlines()]
    assert [row[:2] for row in rows if "silver" in row] == [["0.9", "silver"], ["0.7", "silver"]]
    (day, *_) = json.loads(await tenants("usage", "show", "export", "--json"))
    assert [(own["level"], own["counts"]["requests"]) for own in day["sold"]] == [("0.7", 1), ("0.9", 1)]
    lines = list(csv.DictReader(io.StringIO(await tenants("usage", "show", "export", "--csv"))))
    assert [(line["level"], line["tier"], line["requests"]) for line in lines] == [
        ("0.7", "silver", "1"),
        ("0.9", "silver", "1"),
    ]
