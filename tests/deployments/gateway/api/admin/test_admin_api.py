"""What the command does, over HTTP: with roles, versions and the same audit log."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tenants.admin.operators import Operators, Role
from tenants.records.fields import parse_moment
from tests.deployments.gateway.api.admin.conftest import Office


async def made(answer: Any, status: int = 201) -> Any:
    answer = await answer
    assert answer.status_code == status, answer.text
    return answer.json()


async def prepared(office: Office) -> None:
    await made(office.owner.post("/tiers", json={"tier": "gold", "fields": {"utility": 1.0}}))
    await made(office.owner.post("/tenants", json={"id": "acme", "tier": "gold"}))


async def test_a_tenants_life_over_http(office: Office) -> None:
    await prepared(office)
    changed = await made(office.patch("/tenants/acme", {"rpm": 60, "models": ["a", "b"], "focus_locked": True}), 200)
    assert (changed["rpm"], changed["models"], changed["focus_locked"]) == ("60", "a,b", "true")
    assert "rpm" not in await made(office.patch("/tenants/acme", {"rpm": None}), 200)
    assert await made(office.patch("/tenants/acme/focus/m", {"sky": 0.5, "sea": 0.0}), 200) == {"sky": 0.5}
    key = await made(office.owner.post("/tenants/acme/keys", json={"label": "ci", "limits": {"rpm": 5}}))
    assert key["key"].startswith("sk-acme-") and key["rpm"] == 5
    limited = await made(office.patch(f"/keys/{key['id']}", {"scopes": ["entitlements"]}), 200)
    assert limited["scopes"] == ["entitlements"]
    rotated = await made(office.owner.post(f"/keys/{key['id']}/rotate", json={"overlap_s": 60}))
    assert rotated["replaces"]["id"] == key["id"] and rotated["scopes"] == ["entitlements"]
    await made(office.owner.post(f"/keys/{key['id']}/revoke"), 200)
    listed = (await made(office.owner.get("/tenants/acme/keys"), 200))["data"]
    assert {own["status"] for own in listed} == {"active", "revoked"} and not any("key" in own for own in listed)
    assert (await made(office.owner.post("/tenants/acme/suspend"), 200))["status"] == "suspended"
    assert (await made(office.owner.post("/tenants/acme/activate"), 200))["status"] == "active"
    assert (await made(office.owner.get("/tenants/acme/usage"), 200))[0]["total"]["requests"] == 0
    assert (await made(office.owner.get("/check"), 200))["problems"] == []
    assert await made(office.owner.get("/models"), 200) == {}
    gone = await office.owner.delete("/tenants/acme", headers=await office.version("/tenants/acme"))
    assert gone.json() == {"deleted": "acme", "keys": 2}
    dropped = await office.owner.delete("/tiers/gold", headers=await office.version("/tiers/gold"))
    assert dropped.status_code == 204
    entries = (await made(office.owner.get("/audit"), 200))["data"]
    assert {entry["who"] for entry in entries[:14]} == {"owner"} and entries[0]["via"].startswith("http as owner")
    assert (await made(office.owner.get("/audit/verify"), 200))["broken"] == []


CALLS: dict[str, list[tuple[str, str, Any]]] = {
    "read": [("GET", "/tenants", None), ("GET", "/audit", None), ("GET", "/check", None), ("GET", "/file", None)],
    "keys": [("POST", "/tenants/acme/keys", {})],
    "status": [("POST", "/tenants/acme/suspend", None), ("PATCH", "/tenants/acme", {"status": "active"})],
    "focus": [("PATCH", "/tenants/acme/focus/m", {"sky": 0.1}), ("PATCH", "/tenants/acme", {"focus:m:a": "0.1"})],
    "tenants": [
        ("PATCH", "/tenants/acme", {"at:2126-01-01T00:00:00Z:tier": "gold"}),
        ("PATCH", "/tenants/acme", {"at:2126-01-01T00:00:00Z:-rpm": "-"}),
        ("PATCH", "/tenants/acme", {"rpm": 5}),
        ("PATCH", "/tenants/acme", {"status": "active", "rpm": 6}),
    ],
    "tiers": [("PATCH", "/tiers/gold", {"rpm": 5}), ("POST", "/tiers", {"tier": "new", "fields": {"utility": 1}})],
    "people": [("GET", "/admin-keys", None), ("POST", "/admin-keys", {"name": "x", "role": "owner"})],
    "all": [("POST", "/file", {"tiers": {"gold": {"utility": 1.0}}})],
}
MAY = {
    Role.VIEWER: {"read"},
    Role.SUPPORT: {"read", "keys", "status", "focus"},
    Role.BILLING: {"read", "status", "tenants", "tiers"},
    Role.OWNER: set(CALLS),
}


@pytest.mark.parametrize("role", list(Role))
async def test_each_role_may_do_its_part_and_no_more(office: Office, role: Role) -> None:
    await prepared(office)
    for what, calls in CALLS.items():
        for method, path, body in calls:
            before = [await office.admin.log.verify(), (await office.owner.get("/file")).json()]
            answer = await office.people[role].request(method, path, json=body, headers={"If-Match": "*"})
            if what in MAY[role]:
                assert answer.is_success, (what, path, answer.text)
                continue
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "role_not_entitled"), (what, path)
            assert [await office.admin.log.verify(), (await office.owner.get("/file")).json()] == before


async def test_without_a_good_key_nothing_is_said(office: Office) -> None:
    paths = [(method, path) for calls in CALLS.values() for method, path, _ in calls]
    secret, own = await Operators(office.store, office.admin.log).create("gone", Role.OWNER)
    expired, _ = await Operators(office.store, office.admin.log).create("old", Role.OWNER, expires_at=1.0)
    assert (await office.nobody.get("/me", headers={"Authorization": f"Bearer {secret}"})).json()["name"] == "gone"
    await office.owner.post(f"/admin-keys/{own.id}/revoke")
    broken, other = await Operators(office.store, office.admin.log).create("odd", Role.VIEWER)
    await office.store.execute("HSET", f"adminkey:{other.digest}", "role", "emperor")
    lost, third = await Operators(office.store, office.admin.log).create("lost", Role.VIEWER, expires_at=9e9)
    await office.store.execute("HDEL", f"adminkey:{third.digest}", "expires_at")
    tenants = (await office.admin.create_tier("t", {"utility": "1"}), await office.admin.create_tenant("a", tier="t"))
    assert tenants
    api_key, _ = await office.admin.create_key("a")
    for key in ("", "x", secret, expired, broken, lost, api_key, "adm-owner-" + "A" * 43):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        for method, path in paths if not key else paths[:3]:
            answer = await office.nobody.request(method, path, json={}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_admin_key"), (key, path)
            assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_a_lost_update_is_refused_and_a_change_without_a_version_too(office: Office) -> None:
    await prepared(office)
    key = (await office.owner.post("/tenants/acme/keys")).json()["id"]
    for path, body in (
        ("/tiers/gold", {"rpm": 1}),
        ("/tenants/acme", {"rpm": 1}),
        ("/tenants/acme/focus/m", {"sky": 0.1}),
        (f"/keys/{key}", {"rpm": 1}),
    ):
        read = await office.version(path)
        assert (await office.owner.patch(path, json=body)).status_code == 428
        first = await office.owner.patch(path, json=body, headers=read)
        assert first.status_code == 200 and first.headers["ETag"] != read["If-Match"]
        late = await office.owner.patch(path, json=body, headers=read)
        assert (late.status_code, late.json()["error"]["code"]) == (412, "changed")
        odd = await office.owner.patch(path, json=body, headers={"If-Match": "W/x"})
        assert (odd.status_code, odd.json()["error"]["param"]) == (400, "If-Match")
    stale = await office.version("/tenants/acme")
    await office.admin.set_tenant("acme", {"tpm": "5"})
    assert (await office.owner.delete("/tenants/acme", headers=stale)).status_code == 412
    assert (await office.admin.tenant("acme")).overrides.tpm == 5


async def test_a_file_is_planned_then_applied_and_a_stale_one_is_refused(office: Office) -> None:
    await prepared(office)
    read = await office.version("/file")
    wanted = {"tiers": {"gold": {"utility": 0.5}}, "tenants": {"new": {"tier": "gold", "rpm": 3}}}
    dry = await office.owner.post("/file?dry_run=true&prune=true", json=wanted, headers=read)
    assert [(step["action"], step["name"]) for step in dry.json()["steps"]] == [
        ("set", "gold"),
        ("create", "new"),
        ("delete", "acme"),
    ]
    assert (await office.owner.get("/tiers/gold")).json()["utility"] == "1.0"
    assert (await office.owner.post("/file", json=wanted, headers=read)).json()["made"]
    assert (await office.owner.get("/tenants/new")).json()["rpm"] == "3"
    assert (await office.owner.post("/file", json=wanted, headers=read)).status_code == 412
    again = await office.owner.post("/file", json=wanted, headers=await office.version("/file"))
    assert again.json()["steps"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("GET", "/tenants/none", None, 404, None),
        ("GET", "/nowhere", None, 404, None),
        ("GET", "/keys/00000000", None, 404, None),
        ("GET", "/tiers/a%20b", None, 400, "name"),
        ("POST", "/tenants", {"id": "acme", "tier": "gold"}, 409, None),
        ("POST", "/tenants", {"id": "b", "tier": "none"}, 400, "tier"),
        ("POST", "/tenants", {"id": "b", "tier": "gold", "fields": {"rpm": "many"}}, 400, "rpm"),
        ("POST", "/tenants", {"id": "b", "tier": "gold", "fields": {"rpm": {}}}, 400, "rpm"),
        ("POST", "/tenants", {"id": "b", "tier": "gold", "odd": 1}, 400, "odd"),
        ("POST", "/tenants", {"id": "b", "tier": "gold", "fields": {"sealed": "rpm"}}, 400, "sealed"),
        ("POST", "/tiers", {"tier": "new", "fields": {}}, 400, "utility"),
        ("POST", "/tiers", {"tier": "new", "fields": {"utility": "\ud800"}}, 400, "utility"),
        ("PATCH", "/tenants/acme", {"rpn": 5}, 400, "rpn"),
        ("PATCH", "/tenants/acme", {"tier": None}, 400, "tier"),
        ("PATCH", "/tenants/acme/focus/m", {"sky": 1.0}, 400, "sky"),
        ("POST", "/tenants/acme/keys", {"scopes": ["admin"]}, 400, "scopes"),
        ("POST", "/tenants/acme/keys", {"expires_at": "soon"}, 400, "expires_at"),
        ("POST", "/tenants/acme/keys", {"expires_at": "1e300"}, 400, "expires_at"),
        ("POST", "/tenants/acme/keys", {"limits": {"tenant": 1}}, 400, "tenant"),
        ("POST", "/admin-keys", {"name": "x", "role": "emperor"}, 400, "role"),
        ("POST", "/models/none/calibrate", {"source": "live"}, 400, None),
        ("POST", "/models/none/calibrate", {"source": "../x"}, 400, "source"),
        ("GET", "/tenants/acme/usage?from=9999-12-31&to=0001-01-01", None, 400, "from"),
        ("DELETE", "/tiers/gold", None, 409, None),
    ],
)
async def test_a_mistake_is_one_line_that_names_it_and_changes_nothing(
    office: Office, method: str, path: str, body: Any, status: int, param: str | None
) -> None:
    await prepared(office)
    before = await office.admin.log.verify()
    content = None if body is None else json.dumps(body)
    headers = {"If-Match": "*", "Content-Type": "application/json"}
    answer = await office.owner.request(method, path, content=content, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), answer.text
    assert error["message"] and "\n" not in error["message"]
    assert await office.admin.log.verify() == before


async def test_what_somebody_broke_by_hand_is_shown_as_such(office: Office) -> None:
    await prepared(office)
    key = (await office.owner.post("/tenants/acme/keys")).json()["id"]
    digest = await office.admin.find_digest(key)
    for record in ("tier:gold", "tenant:acme", f"apikey:{digest}"):
        await office.store.execute("HSET", record, "rpm", "many")
    for path in ("/tiers/gold", "/tenants/acme", f"/keys/{key}"):
        answer = await office.owner.get(path)
        assert (answer.status_code, answer.json()["error"]["param"]) == (409, "rpm")
    for path in ("/tiers", "/tenants", "/tenants/acme/keys"):
        assert (await office.owner.get(path)).json()["data"][0]["invalid"]["field"] == "rpm"
    assert len((await office.owner.get("/check")).json()["problems"]) == 3
    assert (await office.owner.post(f"/keys/{key}/revoke")).json()["status"] == "invalid"
    mended = await office.owner.patch("/tiers/gold", json={"rpm": None}, headers={"If-Match": "*"})
    assert mended.status_code == 200
    await office.store.execute("DEL", "tenant:acme")
    await office.store.execute("SET", "tenant:acme", "x")
    assert (await office.owner.get("/tenants/acme")).status_code == 409
    assert (await office.owner.patch("/tenants/acme", json={}, headers={"If-Match": "*"})).status_code == 400
    assert (await office.owner.delete("/tenants/acme", headers={"If-Match": "*"})).status_code == 200


async def test_an_admin_key_ends_when_it_says(office: Office) -> None:
    person = await made(
        office.owner.post("/admin-keys", json={"name": "bo", "role": "viewer", "expires_at": "2099-01-01"})
    )
    assert parse_moment(person["expires_at"]) == parse_moment("2099-01-01") and person["role"] == "viewer"
    headers = {"Authorization": f"Bearer {person['key']}"}
    assert (await office.nobody.get("/me", headers=headers)).json()["id"] == person["id"]
    listed = (await office.owner.get("/admin-keys")).json()["data"]
    assert {own["name"] for own in listed} == {*Role, "bo"} and person["key"] not in str(listed)


async def test_prices_are_versions_that_tenants_sign(office: Office) -> None:
    owner = office.owner
    made = await owner.post("/plans", json={"plan": "standard", "fields": {"currency": "EUR", "image": 1500}})
    assert (made.status_code, made.json()) == (201, {"plan": "standard@1", "currency": "EUR", "image": 1500})
    assert (await owner.post("/plans", json={"plan": "standard", "fields": {"image": 1}})).status_code == 409
    for fields, param in (({"image": 0.5}, "image"), ({"picture": 1}, "picture"), ({"image": 1500}, "plan")):
        wrong = await office.patch("/plans/standard", fields)
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, param)
    stale = await office.version("/plans/standard")
    following = await office.patch("/plans/standard", {"image:m:0.7": 500})
    assert following.json() == {"plan": "standard@2", "currency": "EUR", "image": 1500, "image:m:0.7": 500}
    assert (await owner.patch("/plans/standard", json={"image": 9})).status_code == 428
    assert (await owner.patch("/plans/standard", json={"image": 9}, headers=stale)).status_code == 412
    await owner.post("/tiers", json={"tier": "gold", "fields": {"utility": 1.0, "plan": "standard@1"}})
    tenant = await owner.post("/tenants", json={"id": "acme", "tier": "gold", "fields": {"budget_month": 25_000_000}})
    assert (tenant.json()["plan"], tenant.json()["budget_month"]) == ("standard@1", "25000000")
    moved = await owner.post("/plans/standard/move", json={"tenants": ["acme"]})
    assert moved.json() == {"plan": "standard@2", "tenants": ["acme"]}
    assert (await owner.get("/tenants/acme")).json()["plan"] == "standard@2"
    version = await office.version("/plans/standard@2")
    assert (await owner.delete("/plans/standard@2", headers=version)).status_code == 409
    assert [plan["plan"] for plan in (await owner.get("/plans")).json()["data"]] == ["standard@1", "standard@2"]
    assert "standard@2" in (await owner.get("/file")).json()["plans"]
    assert (await owner.get("/plans/standard@9")).status_code == (await owner.get("/plans/none")).status_code == 404
    assert (await office.people[Role.VIEWER].post("/plans", json={"plan": "x", "fields": {}})).status_code == 403
    assert (await office.people[Role.BILLING].post("/plans", json={"plan": "x", "fields": {}})).status_code == 201
