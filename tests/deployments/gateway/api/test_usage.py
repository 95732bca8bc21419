"""GET /v1/usage: a tenant's own figures, by day, model and level, and nobody else's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from policies.errors import Unavailable
from tenants.records import keyspace
from tenants.store.store import TenantStore
from tests.deployments.gateway_support import Running
from tests.tenants.requests import tenant


async def used(running: Running, name: str, *levels: float) -> None:
    own = tenant(name)
    for level in levels:
        async with running.gateway.admission.admit(own, model="m", images=2, tokens=9, level=level) as lease:
            lease.settle(tokens_in=3, tokens_out=4)
    with pytest.raises(Unavailable):
        async with running.gateway.admission.admit(own, model="m", images=2, level=0.9):
            raise Unavailable("a fault of ours")
    assert await running.gateway.admission.drain()


async def test_a_key_sees_its_tenants_usage_by_day_model_and_level_and_failures_apart(running: Running) -> None:
    await used(running, "acme", 0.9, 0.9, 0.7)
    await used(running, "other", 0.5)
    headers = await running.key()
    answer = await running.client.get("/v1/usage", headers=headers)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    today = datetime.now(UTC).date()
    assert (found["object"], found["tenant"]) == ("usage", "acme")
    assert [day["day"] for day in found["data"]] == [(today - timedelta(days=i)).isoformat() for i in range(7)]
    counts = {"requests": 3, "images": 6, "tokens_in": 9, "tokens_out": 12, "failed": 1, "rejected": 0}
    assert counts.items() <= found["total"].items()
    assert found["data"][0]["total"] == found["data"][0]["by_model"]["m"] == found["total"]
    by_level = {own["level"]: own["counts"]["requests"] for own in found["data"][0]["sold"]}
    assert by_level == {0.7: 1, 0.9: 2} and {own["tier"] for own in found["data"][0]["sold"]} == {"silver"}
    one = (await running.client.get("/v1/usage", params={"days": 1}, headers=headers)).json()
    assert len(one["data"]) == 1 and one["total"] == found["total"]
    before = {"from": str(today - timedelta(days=2)), "to": str(today - timedelta(days=1))}
    assert (await running.client.get("/v1/usage", params=before, headers=headers)).json()["total"]["requests"] == 0


async def test_only_a_key_that_may_reads_usage_and_a_question_is_bounded(running: Running) -> None:
    for scopes, status in ((["inference"], 403), (["entitlements"], 403), (["usage"], 200), (None, 200)):
        secret, _ = await running.admin.create_key("acme", scopes=scopes)
        headers = {"authorization": f"Bearer {secret}"}
        answer = await running.client.get("/v1/usage", headers=headers)
        assert answer.status_code == status, (scopes, answer.text)
        # A right to read is none to call.
        refused = await running.client.get("/v1/models/none", headers=headers)
        assert refused.status_code == 404
    assert (await running.client.get("/v1/usage")).status_code == 401
    for query in (
        {"days": 93}, {"days": 0}, {"from": "2030-01-02", "to": "2030-01-01"},
        {"from": "2020-01-01", "to": "2029-01-01"}, {"from": "soon"}, {"from": "0001-01-01"}, {"to": "9999-12-31"},
        {"from": "0001-01-01", "to": "9999-12-31"},
    ):  # fmt: skip
        answer = await running.client.get("/v1/usage", params=query, headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 400 and "\n" not in answer.json()["error"]["message"], (query, answer.text)


async def test_a_counter_that_is_none_is_503_not_500(running: Running) -> None:
    headers = await running.key()
    async with TenantStore(running.valkey.url) as store:
        day = datetime.now(UTC).date().isoformat()
        await store.execute("HSET", keyspace.usage_period("acme", day), "requests", "junk")
    answer = await running.client.get("/v1/usage", headers=headers)
    assert answer.status_code == 503 and "junk" not in answer.text


async def test_the_document_describes_it(running: Running) -> None:
    document = (await running.client.get("/openapi.json")).json()
    route = document["paths"]["/v1/usage"]["get"]
    assert {p["name"] for p in route["parameters"]} >= {"from", "to", "days"}
    assert "failed" in document["components"]["schemas"]["Counts"]["properties"]
