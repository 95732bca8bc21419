"""What a request costs its tenant, over HTTP: nothing where we failed, and never more than a limit."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator
from datetime import date, timedelta
from typing import Any

import pytest

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo, TextDelta
from policies.errors import DeadlineExceeded, InvalidRequest, ServiceError, Unavailable
from tenants.metering.events import read_events
from tenants.metering.settlement import today
from tenants.metering.usage import read_days

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from tests.deployments.gateway_support import Running, Scripted

PICTURES = ModelInfo(id="p", task=Task.CLASSIFICATION, classes=("cat",), floor=0.1, created=1)
TEXT = ModelInfo(id="t", task=Task.TEXT, classes=None, floor=0.1, context=4096, created=1)
CHAT = "/v1/chat/completions"


class Writer(Scripted):
    """A text model that says as many words as it may, to which every byte is a token."""

    def __init__(self, error: Exception | None = None, after: int = 0) -> None:
        super().__init__(lambda method, prompt, *_: [[0] * sum(len(part["content"].encode()) for part in prompt)])
        self.allowed: list[int | None] = []
        self._error, self._after = error, after

    async def stream(self, method: str, *args: Any, deadline: float) -> AsyncGenerator[Any]:
        prompts, _, params = args[:3]
        self.allowed.append(params["max_tokens"])
        words = min(params["max_tokens"] or 20, 20)
        for i in range(words):
            if self._error is not None and i == self._after:
                raise self._error
            yield TextDelta("a ", 1, "length" if i == words - 1 else None, sum(map(len, prompts)), i + 1)


async def booked(running: Running) -> dict[str, int]:
    assert await running.gateway.admission.drain(20.0)
    return dict((await read_days(running.admin._store, "acme", 1))[0].total)


async def statuses(running: Running) -> list[str]:
    first = date.fromisoformat(today()) - timedelta(days=1)
    return [event.status async for event in read_events(running.admin._store, first, first + timedelta(days=3))]


@pytest.mark.parametrize(
    ("error", "status", "free"),
    [
        (DeadlineExceeded("late"), 408, True),
        (Unavailable("queue full"), 503, True),
        (ServiceError("a fault"), 500, True),
        (InvalidRequest("no picture"), 400, False),
    ],
)
async def test_our_own_failures_are_free_and_leave_every_quota(
    running: Running, error: ServiceError, status: int, free: bool
) -> None:
    running.gateway.service.models = models = Scripted(lambda *_: error)
    models.add(PICTURES)
    headers = await running.key(quota_requests_day="1", quota_images_month="1")
    for _ in range(3 if free else 1):
        answer = await running.client.post("/models/p", content=b"x", headers=headers)
        assert answer.status_code == status, answer.text
        assert await running.gateway.admission.drain(20.0)
    used = await booked(running)
    assert (used["requests"], used["images"], used["failed"]) == ((0, 0, 3) if free else (1, 0, 0))
    refused = await running.client.post("/models/p", content=b"x", headers=headers)
    assert refused.status_code == (status if free else 429)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize(
    ("error", "status"), [(DeadlineExceeded("late"), "late"), (Unavailable("stopped", code="engine_stopped"), "away")]
)
async def test_text_that_breaks_off_is_free_but_for_what_a_stream_delivered_until_its_deadline(
    running: Running, stream: bool, after: int, error: ServiceError, status: str
) -> None:
    running.gateway.service.models = models = Writer(error, after)
    models.add(TEXT)
    body = {"model": "t", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    answer = await running.client.post(CHAT, json=body, headers=await running.key())
    begun = stream and after > 0
    assert answer.status_code == (200 if begun else {"late": 408, "away": 503}[status])
    used = await booked(running)
    billed = begun and status == "late"
    assert (used["requests"], used["tokens_in"], used["tokens_out"]) == ((1, 2, 3) if billed else (0, 0, 0))
    assert used["failed"] == (not billed) and await statuses(running) == [status]


async def test_a_plain_hi_is_served_by_whatever_is_left_of_a_small_limit(running: Running) -> None:
    running.gateway.service.models = models = Writer()
    models.add(TEXT)
    headers = await running.key(tpm="400")
    body: dict[str, Any] = {"model": "t", "messages": [{"role": "user", "content": "Hi"}]}
    answer = await running.client.post(CHAT, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    (allowed,) = models.allowed
    assert allowed is not None and 16 <= allowed < 400
    assert answer.headers["x-ratelimit-remaining-tokens"] == "0"
    assert (await booked(running))["tokens_out"] == 20
    # Asked for by the client, it is not cut short behind its back.
    answer = await running.client.post(CHAT, json=body | {"max_tokens": 390}, headers=headers)
    assert answer.status_code == 429 and "Try again in" in answer.json()["error"]["message"]
    answer = await running.client.post(CHAT, json=body | {"max_tokens": 500}, headers=headers)
    assert answer.status_code == 429 and "can never fit" in answer.json()["error"]["message"]
    assert "retry-after" not in answer.headers and answer.headers["x-should-retry"] == "false"
    # Two answers share what is left.
    answer = await running.client.post(CHAT, json=body | {"n": 2}, headers=await running.key(tpm="400"))
    assert answer.status_code == 200 and models.allowed[-1] is not None and 16 <= models.allowed[-1] < 200


@pytest.mark.parametrize("text", ["7" * 300, "\U0001f600" * 75, "word " * 60], ids=["digits", "faces", "words"])
async def test_no_prompt_uses_more_than_its_minute_whatever_it_is_made_of(running: Running, text: str) -> None:
    """A reserve was once half a prompt's bytes, of which each may be a token."""
    running.gateway.service.models = models = Writer()
    models.add(TEXT)
    headers = await running.key(tpm="1000")
    body = {"model": "t", "messages": [{"role": "user", "content": text}], "max_tokens": 10}
    codes = []
    for _ in range(6):
        codes.append((await running.client.post(CHAT, json=body, headers=headers)).status_code)
        used = await booked(running)
    assert used["tokens_in"] + used["tokens_out"] <= 1000
    assert codes == [200] * 3 + [429] * 3
