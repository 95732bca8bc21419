"""Stepping down, as a client sees it: the level on the answer, why, and the same in the receipt and the event."""

from __future__ import annotations

import asyncio
import warnings
from collections import Counter
from collections.abc import AsyncIterator
from datetime import date

import httpx
import pytest_asyncio

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo
from policies.terms import Modulation
from tenants.admin import installation
from tenants.metering.events import read_events
from tenants.metering.settlement import today
from tenants.metering.usage import read_days
from tenants.records.receipts import HEADER, Said, Signer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from deployments.serving.ingress import TenantGateway
    from tests.deployments.gateway.test_billing import CHAT, PICTURES, TEXT, Writer
    from tests.deployments.gateway_support import Running, Scripted, opened

LADDER = {"utility": "1.0", "rpm": "unlimited", "when_exhausted": "step(0.9:20%, 0.7)"}


async def said(running: Running, answer: httpx.Response) -> Said:
    """What an answer's receipt says, once the headers are seen to say the same."""
    secret = await installation.receipt_secret(running.admin._store)
    found = Signer(secret.encode()).verify(answer.headers[HEADER])
    assert answer.headers["x-utility"] == f"{found.level:g}"
    assert answer.headers.get("x-utility-reason", "") == found.reason
    return found


@pytest_asyncio.fixture
async def second(running: Running) -> AsyncIterator[Running]:
    """Another gateway on the same store."""
    gateway = await opened(running.args)
    parts = Running(running.valkey, gateway, running.admin, running.args)
    yield parts
    await parts.client.aclose()
    await TenantGateway.__del__(gateway)


async def test_64_clients_over_two_gateways_across_the_edge_of_a_budget(running: Running, second: Running) -> None:
    """Prices fall with the level; the budget pays 50 of the first, 20 of the second, and then nothing."""
    running.gateway.service.models = second.gateway.service.models = models = Scripted(lambda *_: [])
    models.add(PICTURES)
    await running.admin.create_plan("p@1", {"image": "100", "image:*:0.9": "80", "image:*:1.0": "160"})
    fields = {"plan": "p@1", "budget_day": "10000", "show_cost": "true"}
    await running.admin.set_tenant("acme", {**LADDER, **fields})
    headers = await running.key()

    async def client(own: Running) -> list[httpx.Response]:
        return [await own.client.post("/models/p", content=b"x", headers=headers) for _ in range(2)]

    got = await asyncio.gather(*(client(own) for own in (running, second) for _ in range(32)))
    answers = [answer for own in got for answer in own]
    assert {answer.status_code for answer in answers} == {200}
    receipts = [await said(running, answer) for answer in answers]
    told = Counter((r.level, r.reason, int(a.headers["x-cost"])) for r, a in zip(receipts, answers, strict=True))
    assert told == {(1.0, "", 160): 50, (0.9, "budget", 80): 25, (0.7, "budget", 0): 53}
    for own in (running, second):
        assert await own.gateway.admission.drain(20.0)
    (day,) = await read_days(running.admin._store, "acme", 1)
    assert {u.level: u.counts["requests"] for u in day.sold} == {"1": 50, "0.9": 25, "0.7": 53}
    assert day.total["cost"] == sum(level[2] * count for level, count in told.items()) == 10_000
    first = date.fromisoformat(today())
    events = [event async for event in read_events(running.admin._store, first, first)]
    assert Counter((e.level, e.reason, e.cost) for e in events) == told
    assert day.total["rejected"] == 0


async def test_the_model_is_told_the_granted_level_and_what_it_discloses(running: Running) -> None:
    asked: list[Modulation] = []

    def answer(method: str, *args: object) -> list[object]:
        asked.extend(arg for arg in args if isinstance(arg, Modulation))
        return []

    running.gateway.service.models = models = Scripted(answer)
    models.add(PICTURES)
    await running.admin.set_tenant("acme", {**LADDER, "quota_images_day": "5"})
    headers = await running.key()
    for _ in range(7):
        await said(running, await running.client.post("/models/p", content=b"x", headers=headers))
    assert [(m.utility, m.disclosure.labels) for m in asked] == [(1.0, None)] * 4 + [(0.9, 1)] + [(0.7, 1)] * 2
    # A granted lower level is no right to ask for one: the tenant's own is 0.9 now.
    await running.admin.set_tenant("acme", {"utility": "0.9", "lower_utility": "no"})
    for _ in range(200):
        below = await running.client.post("/models/p?utility=0.7", content=b"x", headers=headers)
        if below.status_code == 403:
            break
    assert below.json()["error"]["code"] == "lower_utility_not_entitled"


async def test_a_request_for_more_than_a_lower_level_discloses_is_told_that_the_quota_is_used_up(
    running: Running,
) -> None:
    running.gateway.service.models = models = Writer()
    models.add(TEXT)
    await running.admin.set_tenant("acme", {**LADDER, "quota_requests_day": "1"})
    headers = await running.key()
    body = {"model": "t", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
    spelt = {**body, "logprobs": True}
    codes = [(await running.client.post(CHAT, json=own, headers=headers)) for own in (body, body, spelt)]
    assert [answer.status_code for answer in codes] == [200, 200, 429]
    assert codes[2].json()["error"]["code"] == "quota_exceeded"


async def test_a_model_that_has_no_levels_yet_is_not_given_away(running: Running) -> None:
    running.gateway.service.models = models = Scripted(lambda *_: [])
    models.add(ModelInfo(id="p", task=Task.CLASSIFICATION, classes=("cat",), floor=0.1, created=1, pending="solving"))
    await running.admin.set_tenant("acme", {"utility": "1.0", "when_exhausted": "step(0.7)", "quota_images_day": "1"})
    headers = await running.key()
    answers = [await running.client.post("/models/p", content=b"x", headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 503]
    assert answers[1].json()["error"]["code"] == "levels_pending"


async def test_while_many_wait_for_a_model_its_answers_step_down(running: Running) -> None:
    gate = asyncio.Event()

    class Slow(Scripted):
        async def call(self, method: str, *args: object, deadline: float) -> object:
            await gate.wait()
            return []

    running.gateway.service.models = models = Slow()
    models.add(PICTURES)
    await running.admin.set_tenant("acme", {"utility": "1.0", "when_busy": "step(0.9:2, 0.7:4)"})
    headers = await running.key()
    held = [asyncio.create_task(running.client.post("/models/p", content=b"x", headers=headers)) for _ in range(6)]
    while running.gateway.service.waiting["p"] < 6:
        await asyncio.sleep(0.01)
    gate.set()
    answers = await asyncio.gather(*held)
    found = Counter([(one.level, one.reason) for one in [await said(running, answer) for answer in answers]])
    assert found == {(1.0, ""): 2, (0.9, "busy"): 2, (0.7, "busy"): 2}
    assert running.gateway.service.waiting["p"] == 0
    calm = await said(running, await running.client.post("/models/p", content=b"x", headers=headers))
    assert (calm.level, calm.reason) == (1.0, "")


async def test_a_key_sees_its_ladder_its_budget_and_the_level_of_its_next_answer(running: Running) -> None:
    running.gateway.service.models = models = Scripted(lambda *_: [])
    models.add(PICTURES)
    await running.admin.create_plan("p@1", {"image": "10", "currency": "EUR"})
    await running.admin.set_tenant("acme", {**LADDER, "plan": "p@1", "budget_month": "50", "show_cost": "true"})
    headers = await running.key()
    seen = []
    for _ in range(6):
        shown = (await running.client.get("/v1/entitlements", headers=headers)).json()
        seen.append((shown["remaining"]["budget_month"], shown["models"][0]["utility_now"]))
        answer = await running.client.post("/models/p", content=b"x", headers=headers)
        assert float(answer.headers["x-utility"]) == shown["models"][0]["utility_now"]
        assert await running.gateway.admission.drain(20.0)
    assert seen == [(50.0, 1.0), (40.0, 1.0), (30.0, 1.0), (20.0, 1.0), (10.0, 0.9), (0.0, 0.7)]
    assert (shown["when_exhausted"], shown["when_busy"]) == (LADDER["when_exhausted"], "never")
    assert (shown["plan"], shown["currency"], shown["limits"]["budget_month"]) == ("p@1", "EUR", 50)
    await running.admin.set_tenant("acme", {"when_exhausted": "refuse"})
    for _ in range(200):
        shown = (await running.client.get("/v1/entitlements", headers=headers)).json()
        if shown["when_exhausted"] == "refuse":
            break
    assert shown["models"][0]["utility_now"] is None
