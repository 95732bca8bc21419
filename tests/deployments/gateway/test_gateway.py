"""The gateway's HTTP surface before any model: who calls, in which order it is asked, and what every answer carries."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import httpx
import pytest

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo
from deployments.gateway.api.middleware import ClientHeaders
from deployments.gateway.context import RequestContext
from policies.errors import Unauthenticated
from tenants.metering.usage import read_days
from tenants.metering.wanted import Tokens
from tests.deployments.gateway_support import Running, Scripted, opened
from tests.tenants.conftest import until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from deployments.gateway.ticket import Cost
    from deployments.serving.ingress import TenantGateway

PUBLIC = {"/health", "/healthz", "/readyz", "/readyz/{model_id}"}
CHAT = "/v1/chat/completions"


async def test_every_route_but_health_needs_a_key(running: Running) -> None:
    routes = [(path, method) for path, methods in running.app.openapi()["paths"].items() for method in methods]
    assert {path for path, _ in routes} > PUBLIC and len(routes) > len(PUBLIC) + 5
    for path, method in routes:
        if path not in PUBLIC:
            answer = await running.client.request(method, path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"model": 1}', b""])
async def test_who_calls_is_asked_before_the_body_is_read(running: Running, body: bytes) -> None:
    json = {"content-type": "application/json"}
    assert (await running.client.post(CHAT, content=body, headers=json)).status_code == 401
    assert (await running.client.post(CHAT, content=body, headers=json | await running.key())).status_code == 400


async def test_limits_are_on_every_answer_once_an_admission_told_them_and_cost_the_store_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.gateway.service.models = models = Scripted()
    models.add(ModelInfo(id="m", task=Task.CLASSIFICATION, classes=("cat",), floor=0.1, created=1))

    async def refused(headers: dict[str, str]) -> list[httpx.Headers]:
        answers = [
            await running.client.get("/v1/models", headers=headers),
            await running.client.post(CHAT, content=b"{", headers=headers),
            await running.client.post("/models/none", content=b"x", headers=headers),
            await running.client.post("/models/m?top_k=x", content=b"x", headers=headers),
        ]
        return [answer.headers for answer in answers]

    for own in (await running.key(), await running.key(rpm="7")):
        admitted: list[httpx.Headers] = []
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(running.gateway.admission, "ask", None)
                told = await refused(own)
            for headers in told:
                assert headers["x-policy-version"]
                for of in ("limit", "remaining"):
                    name = f"x-ratelimit-{of}-requests"
                    assert headers.get(name) == (admitted[-1][name] if admitted else None)
            admitted.append((await running.client.post("/models/m", content=b"x", headers=own)).headers)
        assert admitted[0]["x-ratelimit-limit-requests"] in ("100", "7")
    assert "x-ratelimit-limit-requests" not in (await running.client.get("/v1/models")).headers


async def test_readiness_names_a_server_that_takes_no_writes_and_liveness_stays(running: Running) -> None:
    assert (await running.client.get("/readyz")).status_code == 200
    own = await running.gateway.cache.authenticate((await running.key())["authorization"].split()[1])
    await running.admin._store.execute("REPLICAOF", "127.0.0.1", "1")
    async with running.gateway.admission.admit(own, model="m"):
        pass
    answer = await running.client.get("/readyz")
    assert answer.status_code == 503 and "READONLY" in answer.json()["reasons"][0]
    assert (await running.client.get("/healthz")).status_code == 200
    await running.admin._store.execute("REPLICAOF", "NO", "ONE")
    assert await running.gateway.admission.drain(20.0)
    assert (await running.client.get("/readyz")).status_code == 200


async def test_usage_of_an_outage_survives_the_gateways_end_and_the_next_gateway_books_it(running: Running) -> None:
    own = await running.gateway.cache.authenticate((await running.key())["authorization"].split()[1])
    server = running.valkey._server._process
    server.kill()
    server.wait()
    for _ in range(5):
        async with running.gateway.admission.admit(own, model="m", images=2):
            pass
    await TenantGateway.__del__(running.gateway)  # as Serve ends a replica, with the store still away
    running.valkey.start()
    running.gateway = await opened(running.args)

    async def booked() -> bool:
        used = (await read_days(running.admin._store, "acme", 1))[0].total
        return (used["requests"], used["images"]) == (5, 10)

    await until(booked)


async def test_encoding_and_answering_share_one_deadline(running: Running) -> None:
    service, now = running.gateway.service, asyncio.get_running_loop().time
    service.models = models = Scripted(lambda *_: [[1]])
    models.add(info := ModelInfo(id="text", task=Task.TEXT, classes=None, floor=0.1, context=100, created=1))
    context = RequestContext()
    await service.authenticate(context, (await running.key())["authorization"].split()[1])
    started = now()
    await service.encode(context, info, ["a"])
    called = now()
    await asyncio.sleep(0.05)
    async with service.admit(context, "text", Cost(tokens=Tokens(1, 1))) as ticket:
        assert [ticket.deadline] == models.deadlines
    # It begins before the wait, however slow the machine is.
    assert started + service.settings.now.deadline_s <= ticket.deadline <= called + service.settings.now.deadline_s


async def test_nobody_is_admitted_who_has_not_said_who_calls(running: Running) -> None:
    service = running.gateway.service
    service.models = models = Scripted()
    models.add(ModelInfo(id="m", task=Task.CLASSIFICATION, classes=(), floor=0.1, created=1))
    with pytest.raises(Unauthenticated):
        async with service.admit(RequestContext(), "m", Cost(images=1)):
            pass


@pytest.mark.parametrize(
    ("tier", "query", "status", "answers"),
    [
        ("free", "", 503, False),
        ("gold", "?utility=0.7", 503, False),
        ("gold", "?focus=cat=0.5", 503, False),
        ("gold", "", 200, True),
        ("gold", "?utility=1.0", 200, True),
        ("free", "?utility=1.0", 403, False),
    ],
)
async def test_while_levels_are_solved_level_1_is_served_and_nothing_else(
    running: Running, tier: str, query: str, status: int, answers: bool
) -> None:
    """A floor that nobody knows yet must raise no tenant's level, and what is refused is not counted."""
    said, calls = "levels below 1.0 are being solved (solving levels, 40%)", []
    info = ModelInfo(id="m", task=Task.CLASSIFICATION, classes=("cat",), floor=0.01, created=1, pending=said)
    running.gateway.service.models = models = Scripted(lambda *words: calls.append(words) or [])
    models.add(info)
    for name, level in (("gold", "1.0"), ("free", "0.7")):
        await running.admin.create_tier(name, {"utility": level, "rpm": "100"})
        await running.admin.create_tenant(name, tier=name)
    headers = {"authorization": f"Bearer {(await running.admin.create_key(tier))[0]}"}

    answer = await running.client.post(f"/models/m{query}", content=b"x", headers=headers)
    assert ("x-receipt" in answer.headers) is answers
    assert (answer.status_code, bool(calls)) == (status, answers), answer.text
    assert answer.headers.get("x-ratelimit-remaining-requests") == ("99" if answers else None)
    if status == 503:
        error = answer.json()["error"]
        assert error["code"] == "levels_pending" and said in error["message"]
        assert 0 < int(answer.headers["retry-after"]) <= 60
    (card,) = (await running.client.get("/v1/models", headers=headers)).json()["data"]
    assert (card["pending"], card["utility"]) == (said, 1.0 if tier == "gold" else 0.7)
    ready = await running.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"status": "partial", "reasons": [f"model m: {said}"]}
    models.add(info.model_copy(update={"pending": "", "floor": 0.1}))
    assert (await running.client.get("/readyz")).json() == {"status": "ok", "reasons": []}


async def test_a_model_that_starts_is_unready_whatever_others_lack(running: Running) -> None:
    info = ModelInfo(id="m", task=Task.CLASSIFICATION, classes=(), floor=0.01, created=1, pending="levels are solved")
    running.gateway.service.models = models = Scripted()
    models.add(info)
    models.waking = ["n"]
    answer = await running.client.get("/readyz")
    assert answer.status_code == 503 and answer.json() == {
        "status": "unready",
        "reasons": ["model n is starting", "model m: levels are solved"],
    }


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        (b"x-request-id", b"3f2c-a.b:c_1", True),
        (b"X-Request-ID", b"a" * 129, False),
        (b"x-request-id", b"\xff", False),
        (b"x-request-id", b"a b", False),
        (b"x-request-id", b"", False),
        (b"X-Request-Timeout-Seconds", b"0", False),
        (b"x-request-disconnect-disabled", b"?1", False),
        (b"authorization", b"Bearer x y", True),
    ],
)
async def test_serve_sees_no_odd_request_id_and_no_switch_of_its_own(name: bytes, value: bytes, kept: bool) -> None:
    seen = []

    async def app(scope: dict[str, list[tuple[bytes, bytes]]], receive: object, send: object) -> None:
        seen.extend(scope["headers"])

    await ClientHeaders(app)({"type": "http", "headers": [(name, value)]}, None, None)  # type: ignore[arg-type]
    assert bool(seen) is kept


async def test_readiness_of_one_model_does_not_ask_for_the_others(running: Running) -> None:
    running.gateway.service.models = models = Scripted()
    info = ModelInfo(id="a", task=Task.TEXT, classes=None, floor=0.1, context=100, created=1)
    models.add(info)
    models.waking, models.visiting = ["b"], ["c"]

    async def said(path: str) -> tuple[int, Any]:
        answer = await running.client.get(path)
        return answer.status_code, answer.json().get("status") or answer.json()["error"]["code"]

    assert await said("/readyz/a") == (200, "ok")
    assert await said("/readyz/b") == await said("/readyz/c") == await said("/readyz") == (503, "unready")
    assert await said("/readyz/none") == (404, "model_not_found")
    models.waking = []
    models.add(info.model_copy(update={"id": "b", "pending": "levels are being solved"}))
    assert await said("/readyz/b") == await said("/readyz") == (200, "partial")
    assert "model c is starting" in (await running.client.get("/readyz")).json()["reasons"]
