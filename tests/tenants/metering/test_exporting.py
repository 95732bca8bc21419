"""Events on their way to a billing system, each once; judged by CloudEvents' and Stripe's own libraries."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
import pytest_asyncio
import stripe
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from tenants.admin.admin import TenantAdmin
from tenants.admin.corrections import Corrections, What
from tenants.metering.admission import Admission
from tenants.metering.settlement import Settlement, State
from tenants.metering.usage import read_days
from tenants.records import keyspace
from tenants.store.store import TenantStore
from tests.tenants.conftest import REPOSITORY, Run, populate
from tests.tenants.receivers import Receiver, receiving
from tests.tenants.requests import MODEL, settlement, tenant
from tests.tenants.sentinel import running_pair

COUNTED = ("requests", "images", "tokens_in", "tokens_out")
SOURCE = "//shop.example/aim"
TODAY = datetime.now(UTC).date()


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving("/api/v1/events") as opened:
        yield opened


def cloud_events(receiver: Receiver) -> list[CloudEvent]:
    """What was received, as CloudEvents' own library reads it."""
    found: list[CloudEvent] = []
    for headers, body in receiver.got:
        assert headers["content-type"] == "application/cloudevents-batch+json"
        found += [JSONFormat().read(None, json.dumps(one)) for one in json.loads(body)]  # type: ignore[misc]
    return found


def imported(receiver: Receiver) -> dict[tuple[str, str], dict[str, Any]]:
    """What a billing system has that takes an id of a source once."""
    return {
        (e.get_source(), e.get_id()): {"tenant": e.get_subject(), **dict(e.get_data())}  # type: ignore[arg-type]
        for e in cloud_events(receiver)
    }


async def exporter(url: str, to: str, *words: str) -> asyncio.subprocess.Process:
    """`tenants usage send` as a process of its own, to kill."""
    command = (sys.executable, "-W", "ignore", "-m", "tenants.command.app", "--redis-url", url, "usage", "send", to)
    environment = {"PYTHONPATH": REPOSITORY, "PATH": "/usr/bin:/bin", "USAGE_EXPORT_TOKEN": "om-secret"}
    return await asyncio.create_subprocess_exec(
        *command, *words, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


async def test_every_request_is_imported_once_through_a_failover_and_an_exporter_that_is_killed_twice(
    tmp_path: Path, receiver: Receiver
) -> None:
    with running_pair(tmp_path) as pair:
        async with await TenantStore.connect(pair.url) as store:
            admission = Admission(store, held_dir=tmp_path / "held")
            served = 0

            async def request(name: str) -> None:
                nonlocal served
                own = tenant(name)
                async with admission.admit(
                    own, model=MODEL, images=1, tokens=50, level=(0.7, 0.9)[served % 2]
                ) as lease:
                    lease.settle(tokens_in=served % 7, tokens_out=4)
                served += 1

            for i in range(150):
                await request(f"t{i % 3}")
            assert await admission.drain(20.0)
            words = ("--state", str(tmp_path / "places"), "--source", SOURCE)
            await killed_in_its_second_batch(pair.url, receiver, words)
            pair.kill_primary()
            while pair.role(1) != "master":  # served under local limits, and held
                await request("t1")
                await asyncio.sleep(0.02)
            for i in range(150):
                await request(f"t{i % 3}")
            assert await admission.drain(30.0)
            await killed_in_its_second_batch(pair.url, receiver, words)
            last = await exporter(pair.url, receiver.url, *words)
            out, err = await last.communicate()
            assert last.returncode == 0, err.decode()
            again = await exporter(pair.url, receiver.url, *words)
            assert (await again.communicate())[0] == b"Sent 0 events.\n"
            found = imported(receiver)
            assert len(found) == served and len(cloud_events(receiver)) > served  # batches came twice, events once
            for name in ("t0", "t1", "t2"):
                (day,) = await read_days(store, name, 1)
                own = [data for data in found.values() if data["tenant"] == name]
                assert {c: sum(data[c] for data in own) for c in COUNTED} == {c: day.total[c] for c in COUNTED}
                levels = {f"{data['level']:g}" for data in own}
                assert levels == {s.level for s in day.sold}
            await admission.aclose()


async def killed_in_its_second_batch(url: str, receiver: Receiver, words: tuple[str, ...]) -> None:
    """Receive a batch, and kill the exporter while it waits for the next one's answer: taken here, unknown there."""
    before, held = len(receiver.got), asyncio.Event()

    async def answer() -> str:
        if len(receiver.got) > before + 1:
            held.set()
            await asyncio.sleep(60)
        return "204 No Content\r\n"

    receiver.answer = answer
    process = await exporter(url, receiver.url, *words)
    await held.wait()
    process.kill()
    await process.wait()
    receiver.answer = lambda: "204 No Content\r\n"
    assert len(receiver.got) == before + 2


async def test_late_ones_and_corrections_come_with_the_next_export_and_a_receiver_that_fails_gets_them_again(
    store: TenantStore, admin: TenantAdmin, admission: Admission, receiver: Receiver, tmp_path: Path, invoke: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("tenants.metering.delivery.FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("USAGE_EXPORT_TOKEN", "om-secret")
    await populate(admin)
    admission.settler.put(settlement(1))
    assert await admission.drain()
    words = ("usage", "send", receiver.url, "--state", str(tmp_path / "places"), "--source", SOURCE)
    receiver.answer = lambda: "503 Busy\r\nRetry-After: 0\r\n" if len(receiver.got) < 3 else "202 Accepted\r\n"
    assert (await invoke(*words)).output == "Sent 1 events.\n"
    assert len(receiver.got) == 3 and len({body for _, body in receiver.got}) == 1
    assert {headers["authorization"] for headers, _ in receiver.got} == {"Bearer om-secret"}
    # Of an outage two days ago, and a correction of that day: behind what was taken, whatever day they are of.
    old = int(time.time()) - 2 * 86_400
    admission.settler.put(Settlement(settlement(2).sold, f"{2:024x}", old, State.HELD, 1))
    assert await admission.drain()
    what = What("acme", datetime.fromtimestamp(old, UTC).date(), MODEL, "0.9", "silver", "ab" * 6)
    number, _ = await Corrections(store, admin).adjust(what, {"requests": -1}, "twice in their books")
    assert (await invoke(*words)).output == "Sent 2 events.\n"
    assert (await invoke(*words)).output == "Sent 0 events.\n"
    found = imported(receiver)
    assert [(d["kind"], d["requests"]) for d in found.values()] == [("request", 1), ("request", 1), ("adjustment", -1)]
    assert found[SOURCE, number]["note"] == "twice in their books"
    receiver.answer = lambda: "403 Forbidden\r\n"
    admission.settler.put(settlement(3))
    assert await admission.drain()
    refused = await invoke(*words)
    assert refused.exit_code == 1 and "answered 403" in refused.output and "om-secret" not in refused.output
    receiver.answer = lambda: "202 Accepted\r\n"
    assert (await invoke(*words)).output == "Sent 1 events.\n"


async def test_stripe_gets_what_stripes_own_client_would_send(
    store: TenantStore, admission: Admission, tmp_path: Path, invoke: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USAGE_EXPORT_TOKEN", "sk_test_x")
    admission.settler.put(settlement(1, requests=1, tokens_in=3))
    assert await admission.drain()
    customers = tmp_path / "customers.json"
    customers.write_text('{"acme": "cus_1"}')
    async with receiving("/v1/billing/meter_events") as ours, receiving("") as theirs:
        words = ("usage", "send", ours.url, "--format", "stripe", "--from", str(TODAY), "--customers", str(customers))
        assert (await invoke(*words)).output == "Sent 1 events.\n"
        sent = [dict(parse_qsl(body.decode())) for _, body in ours.got]
        assert [(s["event_name"], s["payload[value]"]) for s in sent] == [("aim_requests", "1"), ("aim_tokens_in", "3")]
        body = '{"object": "billing.meter_event"}'
        theirs.answer = lambda: (
            f"200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nX: y\r\n\r\n{body}"
        )
        client = stripe.StripeClient("sk_test_x", base_addresses={"api": theirs.url}, max_network_retries=0)  # type: ignore[arg-type]
        for fields in sent:
            payload = {name[8:-1]: value for name, value in fields.items() if name.startswith("payload[")}
            params = {"event_name": fields["event_name"], "identifier": fields["identifier"], "payload": payload}
            params["timestamp"] = int(fields["timestamp"])
            options = {"idempotency_key": fields["identifier"]}
            await asyncio.to_thread(
                client.v1.billing.meter_events.create,
                params=params,
                options=options,  # type: ignore[arg-type]
            )
    assert theirs.paths == ours.paths == ["/v1/billing/meter_events"] * 2
    for (own, body_of_ours), (other, body_of_theirs) in zip(ours.got, theirs.got, strict=True):
        assert dict(parse_qsl(body_of_ours.decode())) == dict(parse_qsl(body_of_theirs.decode()))
        for name in ("authorization", "idempotency-key", "content-type"):
            assert own[name] == other[name]


async def test_a_mistake_is_one_line(store: TenantStore, admission: Admission, tmp_path: Path, invoke: Run) -> None:
    admission.settler.put(settlement(1))
    assert await admission.drain()
    bad, empty = tmp_path / "bad", tmp_path / "empty.json"
    bad.write_text("[]")
    empty.write_text("{}")
    day = str(TODAY)
    for words, said in (
        (("usage", "send", "http://example.com", "--from", day), "expected https://"),
        (("usage", "send", "https://user:pw@example.com", "--from", day), "must not hold a user"),
        (("usage", "send", "https://example.com"), "give --from, or --state"),
        (("usage", "send", "https://example.com", "--from", day, "--state", str(bad)), "give --from, or --state"),
        (("usage", "send", "https://example.com", "--state", str(bad)), "is no file of places"),
        (("usage", "send", "https://example.com", "--state", str(tmp_path / "s"), "--to", day), "--to goes with"),
        (("usage", "send", "https://example.com", "--format", "stripe", "--from", day), "stripe needs --customers"),
        (
            ("usage", "send", "https://e.com", "--format", "stripe", "--from", day, "--customers", str(empty)),
            "'acme' has no customer",
        ),
        (("usage", "export", "--format", "cloudevents"), "give --from, or --state"),
    ):
        result = await invoke(*words)
        assert result.exit_code == 1 and said in result.output, (words, result.output)
        assert len(result.output.splitlines()) == 1 and "pw@" not in result.output


async def test_what_is_printed_follows_a_file_of_places_too(
    store: TenantStore, admission: Admission, tmp_path: Path, tenants: Run
) -> None:
    words = ("usage", "export", "--format", "cloudevents", "--state", str(tmp_path / "places"))
    assert await tenants(*words) == ""
    for i in (1, 2):
        admission.settler.put(settlement(i))
        assert await admission.drain()
        (line,) = (await tenants(*words)).splitlines()
        assert JSONFormat().read(None, line).get_id() == f"{i:024x}"
    await store.execute("DEL", keyspace.events("acme"))
    assert await tenants(*words) == ""
