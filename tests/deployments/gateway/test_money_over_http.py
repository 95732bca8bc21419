"""What an answer costs, as its client is told: a header, a field of usage, a comment at the end of a stream."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo
from policies.errors import ServiceError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from tests.deployments.gateway.test_billing import CHAT, PICTURES, TEXT, Writer, booked
    from tests.deployments.gateway_support import Running, Scripted

SAID = {"model": "t", "messages": [{"role": "user", "content": "x" * 10}], "max_tokens": 5}
SMALL = ModelInfo(id="q", task=Task.CLASSIFICATION, classes=("cat",), floor=0.1, created=1)
PRICES = {"image": "1500", "request": "7", "tokens_in_1k": "1000", "tokens_out_1k": "3000"}


async def priced(running: Running, **fields: str) -> dict[str, str]:
    await running.admin.create_plan("standard@1", PRICES)
    await running.admin.set_tenant("acme", {"plan": "standard@1", **fields})
    return await running.key()


async def test_an_answer_says_what_it_costs_where_its_tier_shows_it(running: Running) -> None:
    running.gateway.service.models = models = Scripted(lambda *_: [])
    models.add(PICTURES)
    headers = await priced(running, show_cost="true")
    answer = await running.client.post("/models/p", content=b"x", headers=headers)
    assert (answer.status_code, answer.headers["x-cost"]) == (200, "1507")
    models._answer = lambda *_: ServiceError("a fault of ours")
    failed = await running.client.post("/models/p", content=b"x", headers=headers)
    assert (failed.status_code, failed.headers["x-cost"]) == (500, "0")
    await running.admin.set_tenant("acme", {"show_cost": "false"})
    models._answer = lambda *_: []
    for _ in range(200):
        hidden = await running.client.post("/models/p", content=b"x", headers=headers)
        if "x-cost" not in hidden.headers:
            break
    assert "x-cost" not in hidden.headers
    assert (await booked(running))["cost"] % 1507 == 0


@pytest.mark.parametrize("usage", [True, False])
async def test_texts_say_it_in_usage_and_streams_at_their_end(running: Running, usage: bool) -> None:
    running.gateway.service.models = models = Writer()
    models.add(TEXT)
    headers = await priced(running, show_cost="true")
    whole = await running.client.post(CHAT, json=SAID, headers=headers)
    assert (whole.json()["usage"]["cost"], whole.headers["x-cost"]) == (32, "32")  # 7 + 10 + 15
    body: dict[str, Any] = {**SAID, "stream": True} | ({"stream_options": {"include_usage": True}} if usage else {})
    lines = (await running.client.post(CHAT, json=body, headers=headers)).text.splitlines()
    assert lines[-4] == ": x-cost 32" and lines[-2] == "data: [DONE]"
    found = [json.loads(line[6:]).get("usage") for line in lines if line.startswith("data: {")]
    assert [own["cost"] for own in found if own] == ([32] if usage else [])
    assert (await booked(running))["cost"] == 64
    models._error = ServiceError("a fault")
    broken = (await running.client.post(CHAT, json=body, headers=headers)).text.splitlines()
    assert ": x-cost 0" in broken or broken[-1].startswith("{")
    assert (await booked(running))["cost"] == 64


async def test_a_budget_that_is_used_up_is_429_and_an_answer_ends_where_it_does(running: Running) -> None:
    running.gateway.service.models = models = Writer()
    models.add(TEXT)
    headers = await priced(running, budget_day="70")
    body = {name: value for name, value in SAID.items() if name != "max_tokens"}
    answer = await running.client.post(CHAT, json=body, headers=headers)
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert models.allowed == [17]  # 7 + 10 + 17 * 3 = 68
    assert (await booked(running))["cost"] == 68
    over = await running.client.post(CHAT, json=body, headers=headers)
    assert (over.status_code, over.json()["error"]["code"]) == (429, "budget_exceeded")
    assert over.headers["x-should-retry"] == "false"
