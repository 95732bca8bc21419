"""Usage, settings and webhooks over HTTP, each by who may."""

from __future__ import annotations

import json
import secrets
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from tenants.admin.operators import Role
from tenants.metering.settlement import Settlement, Sold, State
from tenants.metering.settler import Settler
from tenants.records import keyspace
from tenants.records.fields import iso
from tests.deployments.gateway.api.admin.conftest import Office
from tests.deployments.gateway.api.admin.test_admin_api import made, prepared
from tests.tenants.requests import MODEL, tenant

TODAY = datetime.now(UTC).date().isoformat()


async def used(office: Office, name: str = "acme") -> None:
    """As gateways settle it; who administrates may do that, and not admit."""
    settler = Settler(office.store)
    for i, level in enumerate((0.7, 0.9)):
        sold = Sold(name, tenant().key_id, MODEL, "silver", level)
        settler.put(Settlement(sold, secrets.token_hex(12), int(time.time()) - i, State.HELD, 1, 0, 3, 4))
    assert await settler.drain(10.0)
    await settler.aclose(1.0)


LINE = {"day": TODAY, "model": MODEL, "level": "0.9", "tier": "silver", "key": tenant().key_id, "why": "an outage"}


async def test_usage_is_shown_by_level_corrected_exported_and_erased(office: Office) -> None:
    await prepared(office)
    await used(office)
    (day,) = await made(office.owner.get("/tenants/acme/usage?days=1"), 200)
    assert {own["level"]: own["counts"]["tokens_out"] for own in day["sold"]} == {"0.7": 4, "0.9": 4}
    body = {**LINE, "amounts": {"tokens_out": -4}}
    told = await made(office.people[Role.BILLING].post("/tenants/acme/usage/adjust", json=body))
    repeated = {**body, "amounts": {"images": 1}, "id": told["id"]}
    again = await made(office.owner.post("/tenants/acme/usage/adjust", json=repeated))
    assert (told["booked"], again["booked"]) == (True, False)
    (day,) = await made(office.owner.get("/tenants/acme/usage?days=1"), 200)
    assert (day["total"]["tokens_out"], day["total"]["requests"]) == (4, 2)
    answer = await office.people[Role.VIEWER].get("/usage/export", params={"from": TODAY, "tenant": "acme"})
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert [e["kind"] for e in events] == ["request", "request", "adjustment"] and events[-1]["note"] == "an outage"
    assert sum(e["tokens_out"] for e in events) == day["total"]["tokens_out"]
    clouds = await office.owner.get("/usage/export", params={"from": TODAY, "format": "cloudevents", "source": "//us"})
    assert {json.loads(line)["source"] for line in clouds.text.splitlines()} == {"//us"}
    gone = await office.owner.post("/tenants/acme/erase", headers=await office.version("/tenants/acme"))
    assert gone.json()["events"] == 3, gone.text
    assert (await office.owner.get("/tenants/acme/usage")).status_code == 404
    assert (await office.owner.get("/usage/export", params={"from": TODAY, "tenant": "acme"})).text == ""
    entry = (await made(office.owner.get("/audit"), 200))["data"][0]
    assert (entry["action"], entry["who"]) == ("tenant erase", "owner")


async def test_settings_and_webhooks_are_the_owners_and_no_secret_is_shown_twice(office: Office) -> None:
    for key in (keyspace.SETTINGS, keyspace.WEBHOOKS):
        await office.store.execute("DEL", key)
        await office.store.execute("DEL", keyspace.known(key))
    assert (await made(office.owner.get("/settings"), 200))["usage_days"] == 400
    changed = await made(office.patch("/settings", {"key_max_age_days": 90, "events_days": 60}), 200)
    assert (changed["key_max_age_days"], changed["events_days"]) == (90, 60)
    stale = await office.version("/settings")
    assert (await made(office.patch("/settings", {"events_days": None}), 200))["events_days"] == 35
    late = await office.owner.patch("/settings", json={"events_days": 1}, headers=stale)
    assert late.status_code == 412
    for body, field in (({"usage_days": 1}, "usage_days"), ({"odd": 1}, "odd"), ({"events_days": "x"}, "events_days")):
        wrong = await office.patch("/settings", body)
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, field), wrong.text
    made_hook = await made(office.owner.put("/webhooks/ops", json={"url": "https://example.com/x"}), 200)
    assert made_hook["secret"].startswith("whsec_")
    for url in ("http://example.com", "https://u:p@example.com", "\ud800"):
        content = json.dumps({"url": url})
        wrong = await office.owner.put("/webhooks/ops", content=content, headers={"Content-Type": "application/json"})
        assert wrong.status_code == 400, wrong.text
    listed = await office.people[Role.VIEWER].get("/webhooks")
    assert listed.json()["data"] == [{"name": "ops", "url": "https://example.com/x"}]
    assert made_hook["secret"] not in (await office.owner.get("/audit")).text + listed.text
    assert len((await made(office.owner.post("/webhooks/ops/test"), 202))["id"]) == 24
    assert (await office.owner.delete("/webhooks/ops")).status_code == 204
    for method, path in (("DELETE", "/webhooks/ops"), ("POST", "/webhooks/ops/test")):
        assert (await office.owner.request(method, path)).status_code == 404
    await office.store.execute("DEL", keyspace.SETTINGS)


CALLS: list[tuple[str, str, Any, set[Role]]] = [
    ("POST", "/tenants/acme/usage/adjust", {**LINE, "amounts": {"requests": -1}}, {Role.OWNER, Role.BILLING}),
    ("POST", "/tenants/acme/erase", None, {Role.OWNER}),
    ("PATCH", "/settings", {"events_days": 35}, {Role.OWNER}),
    ("PUT", "/webhooks/ops", {"url": "https://example.com"}, {Role.OWNER}),
    ("POST", "/webhooks/ops/test", None, {Role.OWNER}),
    ("DELETE", "/webhooks/ops", None, {Role.OWNER}),
    ("GET", f"/usage/export?from={TODAY}", None, set(Role)),
    ("GET", "/settings", None, set(Role)),
]


@pytest.mark.parametrize(("method", "path", "body", "may"), CALLS)
async def test_each_role_may_do_its_part_and_no_more(
    office: Office, method: str, path: str, body: Any, may: set[Role]
) -> None:
    await prepared(office)
    await used(office)
    await office.owner.put("/webhooks/ops", json={"url": "https://example.com"})
    for role in [role for role in Role if role not in may]:
        before = await office.admin.log.verify()
        answer = await office.people[role].request(method, path, json=body, headers={"If-Match": "*"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "role_not_entitled"), (role, answer.text)
        assert await office.admin.log.verify() == before
    assert (await office.nobody.request(method, path, json=body)).status_code == 401
    for role in may if method == "GET" else [Role.OWNER]:
        answer = await office.people[role].request(method, path, json=body, headers={"If-Match": "*"})
        assert answer.is_success, answer.text


async def test_a_key_that_is_old_is_listed_as_due_and_check_says_so(office: Office) -> None:
    await prepared(office)
    for label, days in (("young", 10), ("old", 100), ("revoked", 100)):
        own = await made(office.owner.post("/tenants/acme/keys", json={"label": label}))
        digest = await office.admin.find_digest(own["id"])
        await office.store.execute("HSET", keyspace.apikey(digest), "created_at", iso(time.time() - days * 86_400))
        if label == "revoked":
            await office.owner.post(f"/keys/{own['id']}/revoke")
    listed = (await made(office.owner.get("/tenants/acme/keys"), 200))["data"]
    assert not any(own["rotation_due"] for own in listed)
    await office.patch("/settings", {"key_max_age_days": 90})
    listed = (await made(office.owner.get("/tenants/acme/keys"), 200))["data"]
    assert {own["label"] for own in listed if own["rotation_due"]} == {"old"}
    assert {own["label"]: own["age_days"] for own in listed} == {"young": 10, "old": 100, "revoked": 100}
    (problem,) = (await made(office.owner.get("/check"), 200))["problems"]
    assert "100 days old" in problem["problem"] and "tenants key rotate" in problem["problem"]
    await office.store.execute("DEL", keyspace.SETTINGS)
