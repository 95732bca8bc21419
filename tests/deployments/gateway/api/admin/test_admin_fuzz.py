"""Junk over HTTP: never a server error, never half a change. benchmarks/admin_fuzz.py has Schemathesis do more."""

from __future__ import annotations

import json
import random
from typing import Any

from tenants.records.schema import LIMIT_FIELDS
from tests.deployments.gateway.api.admin.conftest import Office
from tests.deployments.gateway.api.admin.test_admin_api import prepared

ROUNDS = 400
NAMES = [
    "tier",
    "status",
    "name",
    "utility",
    "utility:m",
    "models",
    "focus:m:sky",
    "focus:",
    "sealed",
    "project",
    *LIMIT_FIELDS,
]
VALUES: list[Any] = [None, "", " ", "*", "gold", "active", "0", "-1", "1e999", "nan", "unlimited", "[", '["a"]', "é"]
NAMES += ["project", "key_max_age_days", "usage_days", "events_days", "billing_day"]
VALUES += [
    0,
    1,
    -1,
    0.5,
    1e308,
    10**30,
    True,
    False,
    [],
    ["a"],
    ["a,b"],
    [1],
    {},
    {"a": 1},
    "\ud800",
    "\x00",
    "x" * 9000,
]


async def test_junk_in_a_change_is_refused_whole_or_written_whole(office: Office) -> None:
    await prepared(office)
    rng = random.Random(3)
    key = (await office.owner.post("/tenants/acme/keys")).json()["id"]
    await office.owner.post("/projects", json={"project": "gold", "fields": {"rpm": 5}})
    paths = ["/tiers/gold", "/tenants/acme", f"/keys/{key}", "/tenants/acme/focus/m", "/projects/gold", "/settings"]
    for _ in range(ROUNDS):
        path = rng.choice(paths)
        names = [rng.choice([*NAMES, "".join(chr(rng.randrange(0xD900)) for _ in range(5))]) for _ in range(2)]
        body = {name: rng.choice(VALUES) for name in names[: rng.randrange(3)]}
        before = await office.version(path)
        answer = await office.owner.patch(path, content=json.dumps(body), headers=before)
        assert answer.status_code in (200, 400), (path, body, answer.text)
        after = await office.version(path)
        assert answer.status_code == 200 or after == before, (path, body)
    assert (await office.owner.get("/check")).json()["problems"] == []
    assert (await office.admin.log.verify())["broken"] == []


async def test_what_is_no_json_is_refused(office: Office) -> None:
    for content in (b"", b"{", b"\xff", b"[]", b"null", b"1", b'{"a":' * 5000, b'{"a": ' + b"9" * 9000 + b"}"):
        for method, path in (
            ("POST", "/tiers"),
            ("POST", "/file"),
            ("PATCH", "/tenants/acme"),
            ("POST", "/admin-keys"),
        ):
            headers = {"If-Match": "*", "Content-Type": "application/json"}
            answer = await office.owner.request(method, path, content=content, headers=headers)
            assert answer.status_code == 400, (path, content[:20], answer.text)
