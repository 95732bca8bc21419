"""What a gateway reads: how large, how much at once, how long, how it is looked at, and what bad requests cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from deployments.config import GatewayArgs
from deployments.gateway.api.intake import MOST_CONTAINERS, MOST_ELEMENTS, MOST_HELD, Intake, body_limit, check_elements
from deployments.gateway.api.text_schemas import ChatRequest, CompletionRequest
from deployments.gateway.settings import Settings
from policies.errors import DeadlineExceeded, InvalidRequest, LimitExceeded, NotFound, Unavailable
from tests.deployments.gateway_support import Running

CHAT = "/v1/chat/completions"
MANY = 100_000
TURN = {"role": "user", "content": "x"}
FLOODS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "messages of another kind": (ChatRequest.model_validate, {"messages": [0] * MANY}),
    "messages": (ChatRequest.model_validate, {"messages": [TURN] * MANY}),
    "parts of another kind": (ChatRequest.model_validate, {"messages": [{**TURN, "content": [0] * 1000}]}),
    "parts": (ChatRequest.model_validate, {"messages": [{**TURN, "content": [{"type": "text", "text": ""}] * MANY}]}),
    "unknown fields": (ChatRequest.model_validate, {"messages": [TURN], **{f"u{i}": 0 for i in range(MANY)}}),
    "unknown fields of a turn": (ChatRequest.model_validate,
                                 {"messages": [{**TURN, **{f"u{i}": 0 for i in range(MANY)}}]}),
    "focus": (ChatRequest.model_validate, {"messages": [TURN], "focus": {f"u{i}": 9 for i in range(MANY)}}),
    "biases": (ChatRequest.model_validate, {"messages": [TURN], "logit_bias": {f"{i}": 999 for i in range(MANY)}}),
    "stops": (ChatRequest.model_validate, {"messages": [TURN], "stop": [""] * MANY}),
    "options": (ChatRequest.model_validate,
                {"messages": [TURN], "stream": True, "stream_options": {f"u{i}": 0 for i in range(MANY)}}),
    "prompts": (CompletionRequest.model_validate, {"prompt": [""] * MANY}),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_mistakes_is_one_mistake(name: str) -> None:
    validate, fields = FLOODS[name]
    with pytest.raises((ValidationError, InvalidRequest)) as refused:
        validate({"model": "m", **fields})
    if isinstance(refused.value, ValidationError):
        assert len(refused.value.errors()) <= 2


def test_json_of_too_many_elements_is_not_parsed_and_long_texts_are() -> None:
    with pytest.raises(InvalidRequest, match="elements"):
        check_elements(json.dumps({"messages": [0] * (MOST_ELEMENTS + 1)}).encode())
    with pytest.raises(InvalidRequest, match="lists and objects"):
        check_elements(json.dumps({"prompt": [[0]] * (MOST_CONTAINERS + 1)}).encode())
    check_elements(json.dumps({"messages": [{**TURN, "content": "a" * 2**20}]}).encode())
    check_elements(json.dumps({"prompt": list(range(60_000))}).encode())


@pytest.mark.parametrize(
    ("path", "most"),
    [(CHAT, 7000), ("/v1/completions", 7000), ("/models/m/v1/chat/completions", 7000), ("/models/m", 9000)],
)
def test_texts_are_held_to_less_than_pictures(path: str, most: int) -> None:
    assert body_limit(GatewayArgs(max_text_bytes=7000, max_body_bytes=9000), {"path": path}) == most


def asked(body: AsyncIterator[bytes], length: int) -> Request:
    async def receive() -> dict[str, Any]:
        part = await anext(body, None)
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    headers = [(b"content-length", str(length).encode()), (b"content-type", b"application/json")]
    return Request({"type": "http", "path": "/models/m", "method": "POST", "headers": headers}, receive)


async def slowly(gate: asyncio.Event) -> AsyncIterator[bytes]:
    yield b"half"
    await gate.wait()


async def test_a_body_that_does_not_come_ends_and_frees_what_it_held() -> None:
    intake = Intake(Settings(GatewayArgs(body_timeout_s=0.05)))
    with pytest.raises(DeadlineExceeded) as late:
        async with intake.read(asked(slowly(asyncio.Event()), 1000), "a"):
            raise AssertionError
    assert late.value.code == "body_timeout"
    assert not intake._held


async def test_what_is_under_way_is_bounded_by_tenant_and_in_all() -> None:
    intake, gate = Intake(Settings(GatewayArgs(max_tenant_bytes=2000, max_held_bytes=3000))), asyncio.Event()

    async def hold(flow: str, length: int) -> None:
        async with intake.read(asked(slowly(gate), length), flow):
            pass

    first = [asyncio.create_task(hold("a", 900)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="of this tenant"):
        await hold("a", 900)
    other = asyncio.create_task(hold("b", 1100))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="MiB of requests"):
        await hold("c", 900)
    gate.set()
    await asyncio.gather(*first, other)
    assert not intake._held
    await hold("a", 2500)  # larger than a tenant's part, and alone


SMALL = Headers({"content-length": "10"})


async def sent(intake: Intake, flow: str, error: Exception | None = None, headers: Headers = SMALL) -> None:
    async with intake.charged(flow, headers):
        if error is not None:
            raise error


async def test_bad_requests_cost_their_tenant_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("deployments.gateway.api.intake.time.monotonic", lambda: now)
    monkeypatch.setattr("deployments.gateway.api.intake.HELD_S", 0.0)
    intake = Intake(Settings(GatewayArgs(bad_requests_per_s=2.0)))
    for _ in range(19):
        with pytest.raises(NotFound):
            await sent(intake, "a", NotFound("no such model"))
    with pytest.raises(LimitExceeded) as refused:
        await sent(intake, "a")
    assert refused.value.code == "too_many_bad_requests" and refused.value.retry_after >= 1
    await sent(intake, "b")
    now += 1.0
    await sent(intake, "a")
    await sent(intake, "a")
    for _ in range(50):  # what the server has no room for is not the tenant's mistake
        with pytest.raises(Unavailable):
            await sent(intake, "b", Unavailable("busy", retry_after=1))
    await sent(intake, "b")


async def test_a_large_bad_request_costs_as_many_small_ones_as_it_takes_to_parse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deployments.gateway.api.intake.HELD_S", 0.0)
    intake = Intake(Settings(GatewayArgs(bad_requests_per_s=20.0)))
    worst, picture = Headers({"content-length": str(2**20)}), Headers({"content-length": str(2**24)})
    for flow, headers in (("a", worst), ("b", picture)):
        for _ in range(3):
            with pytest.raises(NotFound):
                await sent(intake, flow, NotFound("no such model"), headers)
        with pytest.raises(LimitExceeded, match="retry in [0-9]\\."):  # not for minutes, for one mistake of a picture
            for _ in range(9):
                await sent(intake, flow, None, headers)
                with pytest.raises(NotFound):
                    await sent(intake, flow, NotFound("no such model"), headers)


async def test_a_refused_tenant_is_told_later_but_not_with_any_number_of_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deployments.gateway.api.intake.HELD_S", 0.5)
    intake = Intake(Settings(GatewayArgs(bad_requests_per_s=0.01)))
    asked = [asyncio.create_task(sent(intake, "a")) for _ in range(MOST_HELD + 5)]
    done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    assert len(waiting) == MOST_HELD and len(done) == 5
    await sent(Intake(Settings(GatewayArgs())), "b")
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {LimitExceeded} and not intake._waiting


@pytest.mark.parametrize("leaves", ["closes its connection", "is cancelled by Serve"])
async def test_bodies_that_break_off_cost_their_tenant_until_nothing_more_is_read_of_it(
    leaves: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.gateway.api.intake.time.monotonic", lambda: 100.0)
    monkeypatch.setattr("deployments.gateway.api.intake.HELD_S", 0.0)
    intake, count = Intake(Settings(GatewayArgs(bad_requests_per_s=2.0))), 0

    async def broken() -> AsyncIterator[bytes]:
        nonlocal count
        count += 1
        yield b"half"
        raise ClientDisconnect if leaves == "closes its connection" else asyncio.CancelledError

    async def upload(flow: str) -> None:
        async with intake.charged(flow, SMALL), intake.read(asked(broken(), 1000), flow):
            raise AssertionError

    for _ in range(2):
        with pytest.raises((ClientDisconnect, asyncio.CancelledError)):
            await upload("a")
    with pytest.raises(LimitExceeded):
        await upload("a")
    assert count == 2 and not intake._held
    with pytest.raises((ClientDisconnect, asyncio.CancelledError)):
        await upload("b")


LARGE = {
    "ids": json.dumps({"prompt": list(range(60_000)), "seed": 12345678901234567890}),
    "words": json.dumps({"messages": [{**TURN, "content": "Grüße \\u20ac 🐎 " * 10_000}], "temperature": 0.1}),
    "half a pair": '{"messages": [{"role": "user", "content": "\\ud800 ' + "a" * 70_000 + '"}]}',
    "twice": '{"model": "a", "x": "' + "a" * 70_000 + '", "model": "b", "y": NaN, "z": -Infinity, "n": 1e400}',
    "deep": json.dumps({"x": "a" * 70_000, "deep": eval("[" * 90 + "]" * 90)}),
    "deeper": '{"x": "' + "a" * 70_000 + '", "deep": ' + "[" * 500 + "]" * 500 + "}",
}


@pytest.mark.parametrize("name", LARGE)
async def test_a_large_body_is_read_as_pythons_own_library_reads_it(name: str) -> None:
    body = LARGE[name].encode()

    async def parts() -> AsyncIterator[bytes]:
        yield body

    request = asked(parts(), len(body))
    async with Intake(Settings(GatewayArgs())).read(request, "a"):
        assert hasattr(request, "_json") is (name not in ("half a pair", "deeper")), "what the library refuses"
        assert repr(await request.json()) == repr(json.loads(body))


async def test_a_large_body_that_is_no_json_is_refused_as_a_small_one(running: Running) -> None:
    key = {**await running.key(), "content-type": "application/json"}
    answers = [await running.client.post(CHAT, content=b"{" + b'"a":1,' * n, headers=key) for n in (10, 20_000)]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json()["error"]["code"] == answers[1].json()["error"]["code"]


async def test_through_the_gateway_a_large_text_is_refused_and_so_is_one_mistake_too_many(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.gateway.api.intake.HELD_S", 0.0)
    key = await running.key()
    large = await running.client.post(CHAT, content=b"x" * (2**20 + 1), headers=key)
    assert large.status_code == 413 and "1 MiB" in large.json()["error"]["message"]
    assert (await running.client.post("/models/none", content=b"x" * (2**20 + 1), headers=key)).status_code == 404
    zeros = {"model": "m", "messages": [0] * 1000}
    refused = await running.client.post(CHAT, json=zeros, headers=key)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "messages[0]"
    many = await running.client.post(CHAT, json={"model": "m", "messages": [0] * (MOST_ELEMENTS + 1)}, headers=key)
    assert many.json()["error"]["code"] == "too_many_elements"
    running.gateway.reconfigure({"bad_requests_per_s": 5.0})
    statuses = {(await running.client.post(CHAT, json=zeros, headers=key)).status_code for _ in range(120)}
    assert statuses == {400, 429}


async def test_requests_without_a_body_that_overlap_end_in_any_order() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    intake = Intake(Settings(GatewayArgs()))
    requests = [Request({"type": "http", "method": "GET", "path": "/", "headers": []}, receive) for _ in range(2)]
    first, second = [intake.read(request, "acme") for request in requests]
    await first.__aenter__()
    await second.__aenter__()
    await first.__aexit__(None, None, None)
    await second.__aexit__(None, None, None)
