"""Alerts: once each and in the audit log, on however many gateways; signed, retried, and judged by the specification's
own library."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tenants.admin.admin import TenantAdmin
from tenants.admin.settings import change_settings, set_webhook
from tenants.changes.edits import AdminError
from tenants.metering.admission import Admission
from tenants.metering.alerts import raise_alert, threshold
from tenants.metering.meters import DAY, TENANT, Counter, Limit
from tenants.metering.watch import label
from tenants.metering.webhooks import PAUSES_S, Alerts
from tenants.records import keyspace
from tenants.records.settings import checked_url
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend, Run
from tests.tenants.receivers import Receiver, receiving
from tests.tenants.requests import MODEL, attempt, tenant


def messages(receiver: Receiver, secret: str) -> list[dict[str, Any]]:
    """What was got, each verified."""
    return [Webhook(secret).verify(body, headers) for headers, body in receiver.got]  # type: ignore[misc]


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as opened:
        yield opened


class Clock:
    """A gateway's clock, which a test moves."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest_asyncio.fixture
async def gateway(store: TenantStore, admission: Admission) -> AsyncIterator[tuple[Alerts, Clock]]:
    clock = Clock()
    alerts = Alerts(store, now=clock)
    admission.observe = alerts.watch.observe
    yield alerts, clock
    await alerts.aclose()


Gateway = tuple[Alerts, Clock]


async def settle(alerts: Alerts, turns: int = 3) -> None:
    for _ in range(turns):
        await alerts.turn()


async def test_each_threshold_of_a_quota_is_told_once_by_two_gateways_signed_and_in_the_audit(
    shared_backend: Backend, store: TenantStore, admin: TenantAdmin, admission: Admission, gateway: Gateway,
    receiver: Receiver,
) -> None:  # fmt: skip
    secret = await set_webhook(store, admin.log, "ops", receiver.url)
    own = tenant(quota_requests_day=10, quota_tokens_month=100_000, rpm=1000)
    async with await TenantStore.connect(shared_backend.url, timeout_s=5.0) as second:
        other_admission, other = Admission(second), Alerts(second)
        other_admission.observe = other.watch.observe
        for i in range(12):
            await attempt((admission, other_admission)[i % 2], own, tokens=10)
            assert await admission.drain() and await other_admission.drain()
            await asyncio.gather(gateway[0].turn(), other.turn())
        await settle(gateway[0])
        await settle(other)
        await other.aclose()
        await other_admission.aclose()
    found = messages(receiver, secret)
    assert [(m["type"], m["data"]["limit"], m["data"]["percent"]) for m in found] == [
        ("limit.threshold", "quota_requests_day", percent) for percent in (50, 80, 100)
    ]
    assert {(m["data"]["tenant"], m["data"]["of"]) for m in found} == {("acme", 10)}
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 3
    entries = [e for e in await admin.log.read(50) if e["action"] == "alert limit.threshold"]
    assert [e["detail"].split("percent=")[1].split(",")[0] for e in entries] == ["100", "80", "50"]
    assert {(e["who"], e["subject"]) for e in entries} == {("alerts", "acme")}
    assert (await admin.log.verify())["broken"] == []


async def test_what_is_only_reserved_raises_nothing_and_a_raised_quota_is_told_anew(
    store: TenantStore, admin: TenantAdmin, admission: Admission, gateway: Gateway, receiver: Receiver
) -> None:
    secret = await set_webhook(store, admin.log, "ops", receiver.url)
    alerts, _ = gateway
    own = tenant(quota_tokens_day=1000)
    async with admission.admit(own, model=MODEL, tokens=900) as lease:
        await settle(alerts)
        lease.settle(tokens_in=10)
    assert await admission.drain()
    await settle(alerts)
    assert receiver.got == []
    async with admission.admit(own, model=MODEL, tokens=900) as lease:
        lease.settle(tokens_in=100, tokens_out=700)
    assert await admission.drain()
    await settle(alerts)
    assert sorted(m["data"]["percent"] for m in messages(receiver, secret)) == [50, 80]
    more = tenant(quota_tokens_day=1600)
    assert await attempt(admission, more, tokens=10)
    assert await admission.drain()
    await settle(alerts)
    assert [(m["data"]["percent"], m["data"]["of"]) for m in messages(receiver, secret)][2:] == [(50, 1600)]
    # 790 of 1,000 and none under way: a refusal then means that the quota is as good as used up.
    assert not await attempt(admission, tenant(quota_tokens_day=830), tokens=100)
    await settle(alerts)
    assert sorted(m["data"]["percent"] for m in messages(receiver, secret)[3:]) == [50, 80, 100]


async def test_a_receiver_that_fails_is_asked_again_with_the_same_id_and_given_up_after_days(
    store: TenantStore, admin: TenantAdmin, gateway: Gateway, receiver: Receiver
) -> None:
    secret = await set_webhook(store, admin.log, "ops", receiver.url)
    alerts, clock = gateway
    receiver.answer = lambda: "500 Oops\r\n" if len(receiver.got) < 3 else "204 No Content\r\n"
    await raise_alert(store, some(50))
    for pause in (0, *PAUSES_S[:2]):
        clock.ahead += pause
        await settle(alerts)
    assert len(receiver.got) == 3
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    clock.ahead = 0.0
    assert await store.execute("ZCARD", keyspace.ALERTS_DUE) == 0
    # A redirect is followed by nobody, and is no success.
    receiver.answer = lambda: "302 Found\r\nLocation: http://127.0.0.1:1/\r\n"
    await raise_alert(store, some(80))
    for pause in (0, *PAUSES_S):
        clock.ahead += pause
        await settle(alerts)
    assert await store.execute("ZCARD", keyspace.ALERTS_DUE) == 0 and len(receiver.got) == 3 + 1 + len(PAUSES_S)
    (entry,) = [e for e in await admin.log.read(20) if e["action"] == "alert undelivered"]
    assert "302" in entry["detail"] and "hidden" not in entry["detail"] and secret not in json.dumps(entry)


async def test_a_leader_that_dies_is_followed_and_what_it_took_is_sent_again(
    store: TenantStore, admin: TenantAdmin, gateway: Gateway, receiver: Receiver
) -> None:
    await set_webhook(store, admin.log, "ops", receiver.url)
    first, second = gateway[0], Alerts(store)
    await first.turn()
    await raise_alert(store, some(50))
    await second.turn()
    assert receiver.got == []  # the first leads
    await store.execute("DEL", keyspace.ALERTS_LEADER)  # as after its death, when its lock runs out
    await second.turn()
    await first.turn()
    assert len(receiver.got) == 1
    await second.aclose()
    assert await store.execute("EXISTS", keyspace.ALERTS_LEADER) == 0


async def test_a_key_that_grows_old_and_is_used_is_told_once_a_month(
    store: TenantStore, admin: TenantAdmin, admission: Admission, gateway: Gateway, receiver: Receiver
) -> None:
    secret = await set_webhook(store, admin.log, "ops", receiver.url)
    alerts, _ = gateway
    own = tenant()
    old = type(own)(**{f: getattr(own, f) for f in own.__slots__} | {"key_created_at": time.time() - 91 * 86_400})
    assert await attempt(admission, old)
    await settle(alerts)
    assert receiver.got == []
    await change_settings(store, admin.log, {"key_max_age_days": "90"})
    await settle(alerts)
    for _ in range(3):
        assert await attempt(admission, old) and await attempt(admission, own)
        await settle(alerts)
    (message,) = messages(receiver, secret)
    assert (message["type"], message["data"]["key"]) == ("key.rotation_due", own.key_id)


async def test_a_test_reaches_one_webhook_and_a_forged_one_is_found_out(
    store: TenantStore, admin: TenantAdmin, gateway: Gateway, receiver: Receiver, tenants: Run, invoke: Run
) -> None:
    secret = (await tenants("webhook", "set", "ops", receiver.url)).strip()
    await tenants("webhook", "set", "other", "https://example.com/x")
    await tenants("webhook", "test", "ops")
    await settle(gateway[0])
    ((headers, body),) = receiver.got
    assert Webhook(secret).verify(body, headers)["type"] == "test"
    for forged in (body.replace(b"test", b"toast"), b"{}"):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(forged, headers)
    wrong = await invoke("webhook", "test", "none")
    assert wrong.exit_code == 1 and "there is no webhook 'none'" in wrong.output
    assert secret not in json.dumps(await admin.log.read(50)) and secret not in await tenants("webhook", "list")


@pytest.mark.parametrize(
    "url",
    ["http://example.com", "http://10.0.0.1/", "ftp://example.com", "https://", "https://a:b@example.com/", "file:///x",
     "http://127.0.0.1.example.com/", "https://exa mple.com", "http://[::2]/", "https://example.com:0/", "x", "",
     "http://0x7f000001/", "http://2130706433/", "https://example.com:99999/", "https://é.example/", "http://0.0.0.0/"],
)  # fmt: skip
async def test_an_address_is_https_or_loopback(store: TenantStore, admin: TenantAdmin, url: str) -> None:
    with pytest.raises(AdminError, match="^ops: "):
        await set_webhook(store, admin.log, "ops", url)
    assert await store.execute("EXISTS", keyspace.WEBHOOKS, keyspace.webhook_secret("ops")) == 0


@pytest.mark.parametrize(
    "url", ["https://example.com/x?y=1", "http://127.0.0.1:9/", "http://localhost", "http://[::1]"]
)
def test_what_an_address_may_be(url: str) -> None:
    assert checked_url(url) == url


@pytest.mark.parametrize(
    ("period", "second", "name"),
    [
        ("day", 1767225599, "2025-12-31"), ("day", 1767225600, "2026-01-01"), ("month", 1767225599, "2025-12"),
        ("month@17", 1767225600, "2025-12@17"), ("month@17", 1768608000, "2026-01@17"), ("month@1", 1, "1970-01"),
    ],
)  # fmt: skip
def test_a_period_is_called_as_the_scripts_call_it(period: str, second: int, name: str) -> None:
    assert label(period, second) == name


def some(percent: int) -> Any:
    limit = Limit(TENANT, Counter.REQUESTS, DAY, 10, "quota_requests_day")
    return threshold("acme", limit, "2030-01-01", percent, percent // 10, 60)


async def test_usage_and_events_are_kept_as_long_as_the_settings_say(
    store: TenantStore, admin: TenantAdmin, admission: Admission
) -> None:
    alerts = Alerts(store, admission.settler)
    await change_settings(store, admin.log, {"usage_days": "100", "events_days": "10"})
    await alerts.turn()
    assert await attempt(admission, tenant())
    assert await admission.drain()
    day = datetime.now(UTC).date().isoformat()
    for key, days in ((keyspace.usage_period("acme", day), 100), (keyspace.sold("acme", day), 100)):
        assert (days - 1) * 86_400 < await store.execute("TTL", key) <= days * 86_400
    assert 9 * 86_400 < await store.execute("TTL", keyspace.events("acme")) <= 10 * 86_400
    await store.execute("HSET", keyspace.SETTINGS, "usage_days", "soon")
    await alerts.turn()
    assert admission.settler.kept.usage_days == 100  # a slip shortens nothing
    assert [(p.key, p.field) for p in await admin.check()] == [("settings", "usage_days")]
    (entry, *_) = await admin.log.read(1)
    assert (entry["who"], entry["action"]) == ("(by hand)", "settings changed")
    await alerts.aclose()
