"""Files and batches as OpenAI's own client uses them, over a gateway whose models are a script."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo, TextDelta
from deployments.gateway.api import batches
from deployments.gateway.api.batch_lines import asker
from deployments.gateway.batches import pace, runner, verdict, work
from policies.errors import InvalidRequest, Unavailable
from tenants.metering.usage import read_days
from tests.deployments.gateway_support import Running, Scripted
from tests.tenants.conftest import until

CHAT, PICTURES = "/v1/chat/completions", "/models/labels"


class Models(Scripted):
    """A text model and a classifier; counts what each was asked, and fails as a test says."""

    def __init__(self) -> None:
        super().__init__(self.predicted)
        self.asked: Counter[str] = Counter()
        self.background: list[bool] = []
        self.fails: Callable[[str], Exception | None] = lambda _: None
        self.gate = asyncio.Event()
        self.gate.set()
        self.add(ModelInfo(id="text", task=Task.TEXT, classes=None, floor=0.1, context=1000, created=1))
        self.add(ModelInfo(id="labels", task=Task.CLASSIFICATION, classes=("sky",), floor=0.1, created=1))

    def predicted(self, method: str, data: Any, *rest: Any) -> Any:
        if method == "encode":
            return [[1, 2, 3]]
        self.asked[data.decode()] += 1
        return self.fails(data.decode()) or [{"label": "sky", "score": None}]

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        self.last = args[0]
        return await super().call(method, *args, deadline=deadline)

    async def stream(self, method: str, *args: Any, deadline: float) -> Any:
        if method != "generate":
            return
        said = self.last[0]["content"]
        self.asked[said] += 1
        self.background.append(args[-2].background)
        await self.gate.wait()
        if error := self.fails(said):
            raise error
        yield TextDelta(f"You said {said}", 1, "stop", 3, 1)


@pytest.fixture
def models(running: Running, monkeypatch: pytest.MonkeyPatch) -> Models:
    for module, name, value in (
        (runner, "PERIOD_S", 0.05),
        (runner, "RENEW_S", 0.05),
        (work, "_AWAY_S", 0.05),
        (pace, "QUIET_S", 0.0),
        (pace, "_LONGEST_WAIT_S", 0.2),
    ):
        monkeypatch.setattr(module, name, value)
    made = Models()
    running.gateway.service.models = made
    running.gateway.service.settings.change({"batch_at_once": 1})
    return made


@pytest_asyncio.fixture
async def client(running: Running, models: Models) -> AsyncIterator[openai.AsyncOpenAI]:
    await running.admin.set_tier("silver", {"rpm": "unlimited"})
    key = (await running.key())["authorization"].removeprefix("Bearer ")
    transport = httpx.ASGITransport(running.app)
    async with openai.AsyncOpenAI(
        base_url="http://gateway/v1", api_key=key, max_retries=0, http_client=httpx.AsyncClient(transport=transport)
    ) as made:
        yield made


def chats(count: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "custom_id": f"id-{at}",
            "method": "POST",
            "url": CHAT,
            "body": {"model": "text", "messages": [{"role": "user", "content": f"line {at}"}], "max_tokens": 2} | more,
        }
        for at in range(count)
    ]


def in_lines(lines: list[Any]) -> bytes:
    return b"\n".join(json.dumps(line).encode() for line in lines)


async def made(client: openai.AsyncOpenAI, lines: list[Any] | bytes, endpoint: str = CHAT, **more: Any) -> Any:
    data = lines if isinstance(lines, bytes) else in_lines(lines)
    file = await client.files.create(file=("in.jsonl", data), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,  # type: ignore[arg-type]
        completion_window="24h",
        **more,
    )


async def ended(client: openai.AsyncOpenAI, batch: Any) -> Any:
    async def look() -> Any:
        now = await client.batches.retrieve(batch.id)
        return now if now.status in ("completed", "failed", "expired", "cancelled") else None

    return await until(look)


async def output(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in (await client.files.content(file_id)).text.splitlines()]


async def test_a_batch_of_openais_client_is_answered_in_its_order(
    client: openai.AsyncOpenAI, models: Models, running: Running
) -> None:
    batch = await made(client, chats(5), metadata={"of": "mine"})
    assert (batch.status, batch.object, batch.metadata) == ("validating", "batch", {"of": "mine"})
    done = await ended(client, batch)
    assert (done.status, done.errors, done.error_file_id) == ("completed", None, None)
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (5, 5, 0)
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    assert done.expires_at == done.created_at + 86_400
    lines = await output(client, done.output_file_id)
    assert [line["custom_id"] for line in lines] == [f"id-{at}" for at in range(5)]
    assert {line["error"] for line in lines} == {None}
    assert len({line["id"] for line in lines}) == 5
    answer = lines[3]["response"]
    assert (answer["status_code"], answer["request_id"]) == (200, f"{batch.id}-4")
    said = openai.types.chat.ChatCompletion.model_validate(answer["body"])
    assert said.choices[0].message.content == "You said line 3"
    assert answer["headers"]["x-utility"] == "0.9" and answer["headers"]["x-receipt"]
    assert all(models.background) and set(models.asked.values()) == {1}
    # Each is a request of the tenant's like any other.
    await running.gateway.admission.drain()
    assert (await read_days(running.gateway.store, "acme", 1))[0].total["requests"] == 5
    assert [b.id async for b in client.batches.list(limit=1)] == [batch.id]
    assert [f.purpose async for f in client.files.list(limit=1)].count("batch_output") == 1


async def test_pictures_and_errors_of_single_lines(client: openai.AsyncOpenAI, models: Models) -> None:
    models.fails = lambda said: InvalidRequest("No picture.", param="inputs", code="bad") if said == "no" else None
    bodies: list[dict[str, Any]] = [
        {"inputs": "eWVz"},
        {"inputs": "bm8="},
        {"inputs": "eWVz", "parameters": {"top_k": 0}},
    ]
    lines = [{"custom_id": str(at), "method": "POST", "url": PICTURES, "body": b} for at, b in enumerate(bodies)]
    done = await ended(client, await made(client, lines, PICTURES))
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 1, 2)
    (good,) = await output(client, done.output_file_id)
    assert good["response"]["body"][0]["label"] == "sky" and good["response"]["headers"]["x-scores"]
    bad = await output(client, done.error_file_id)
    assert [line["response"]["status_code"] for line in bad] == [400, 400]
    assert [line["response"]["body"]["error"]["param"] for line in bad] == ["inputs", "parameters.top_k"]


@pytest.mark.parametrize(
    ("data", "line", "code"),
    [
        (b"", None, "empty_file"),
        (b"\n  \n", None, "empty_file"),
        (b"not json", 1, "invalid_json_line"),
        (in_lines([chats(1)[0], [1]]), 2, "invalid_json_line"),
        (in_lines([*chats(1), *chats(1)]), 2, "duplicate_custom_id"),
        (in_lines([chats(1)[0] | {"method": "GET"}]), 1, "invalid_method"),
        (in_lines([chats(1)[0] | {"url": "/v1/completions"}]), 1, "mismatched_url"),
        (in_lines([chats(1)[0] | {"custom_id": 7}]), 1, "invalid_custom_id"),
        (in_lines([chats(1)[0] | {"body": None}]), 1, "invalid_request"),
        (in_lines([chats(1)[0] | {"extra": 1}]), 1, "invalid_request"),
        (in_lines(chats(1, stream=True)), 1, "invalid_request"),
    ],
)
async def test_a_file_that_is_no_batch_fails_before_anything_is_asked(
    client: openai.AsyncOpenAI, models: Models, data: bytes, line: int | None, code: str
) -> None:
    done = await ended(client, await made(client, data))
    assert done.status == "failed" and done.failed_at
    assert [(fault.line, fault.code) for fault in done.errors.data] == [(line, code)]
    assert not models.asked and done.output_file_id is None


async def test_a_killed_gateways_batch_goes_on_elsewhere_and_each_line_is_written_once(
    client: openai.AsyncOpenAI, models: Models, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "LEASE_S", 0.3)
    batch = await made(client, chats(20))
    await until(lambda: len(models.asked) >= 5)
    # As SIGKILL does: nothing is given back, what was under way is lost.
    first = running.gateway.batches
    for task in [*first._tasks, *(task for _, task in first._working.values())]:
        task.cancel()
    await asyncio.sleep(0)
    second = runner.BatchRunner(running.gateway.service, running.gateway.store)
    running.gateway.batches = second
    second.start(asker(running.app))
    done = await ended(client, batch)
    assert (done.status, done.request_counts.completed) == ("completed", 20)
    lines = await output(client, done.output_file_id)
    assert [line["custom_id"] for line in lines] == [f"id-{at}" for at in range(20)]
    # At most the line that was under way was asked twice.
    assert sum(models.asked.values()) <= 21
    assert second._token != first._token


async def test_two_gateways_look_at_once_and_one_works(
    client: openai.AsyncOpenAI, models: Models, running: Running
) -> None:
    other = runner.BatchRunner(running.gateway.service, running.gateway.store)
    other.start(asker(running.app))
    try:
        for _ in range(3):
            done = await ended(client, await made(client, chats(4)))
            assert done.request_counts.completed == 4
        assert set(models.asked.values()) == {3}
    finally:
        await other.aclose()


async def test_a_cancelled_batch_keeps_what_it_has(client: openai.AsyncOpenAI, models: Models) -> None:
    batch = await made(client, chats(50))
    await until(lambda: len(models.asked) >= 3)
    models.gate.clear()
    assert (await client.batches.cancel(batch.id)).status == "cancelling"
    models.gate.set()
    done = await ended(client, batch)
    assert done.status == "cancelled" and done.cancelling_at and done.cancelled_at
    lines = await output(client, done.output_file_id)
    assert 0 < len(lines) == done.request_counts.completed < 50
    assert (await client.batches.cancel(batch.id)).status == "cancelled"


async def test_a_revoked_key_stops_its_batch(client: openai.AsyncOpenAI, models: Models, running: Running) -> None:
    batch = await made(client, chats(200))
    await until(lambda: len(models.asked) >= 3)
    await running.admin.revoke_key(client.api_key)
    other = openai.AsyncOpenAI(
        base_url="http://gateway/v1",
        api_key=(await running.key())["authorization"].removeprefix("Bearer "),
        http_client=client._client,
    )
    done = await ended(other, batch)
    assert (done.status, done.errors.data[0].code) == ("failed", "invalid_api_key")
    assert done.request_counts.completed < 200
    assert len(await output(other, done.output_file_id)) == done.request_counts.completed


async def test_a_new_level_applies_to_the_next_line(
    client: openai.AsyncOpenAI, models: Models, running: Running
) -> None:
    batch = await made(client, chats(200))
    await until(lambda: len(models.asked) >= 3)
    await running.admin.set_tier("silver", {"utility": "1.0"})
    done = await ended(client, batch)
    levels = [line["response"]["headers"]["x-utility"] for line in await output(client, done.output_file_id)]
    assert levels[0] == "0.9" and levels[-1] == "1" and levels == sorted(levels)


async def test_what_passes_is_waited_for_and_what_fails_for_good_is_not(
    client: openai.AsyncOpenAI, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "judge", lambda answer, tries: _hurried(answer, tries))

    def fails(said: str) -> Exception | None:
        if said == "line 1" and models.asked[said] < 12:
            return Unavailable("Later.", code="queue_full")
        return Unavailable("Gone.", code="replica_away") if said == "line 2" else None

    models.fails = fails
    done = await ended(client, await made(client, chats(4)))
    assert (done.request_counts.completed, done.request_counts.failed) == (3, 1)
    assert (models.asked["line 1"], models.asked["line 2"]) == (12, 8)
    (bad,) = await output(client, done.error_file_id)
    assert bad["response"]["status_code"] == 503


def _hurried(answer: Any, tries: int) -> Any:
    found = verdict.judge(answer, tries)
    return verdict.Again(0.001, found.counts) if isinstance(found, verdict.Again) else found


async def test_a_minutes_limit_is_waited_for_and_half_of_it_left_to_other_calls(
    client: openai.AsyncOpenAI, models: Models, running: Running
) -> None:
    await running.admin.set_tier("silver", {"rpm": "10"})
    batch = await made(client, chats(20))
    await until(lambda: len(models.asked) >= 5)
    await asyncio.sleep(0.5)
    assert len(models.asked) == 5
    answer = await client.chat.completions.create(model="text", messages=[{"role": "user", "content": "me"}])
    assert answer.choices[0].message.content == "You said me"
    await client.batches.cancel(batch.id)
    assert (await ended(client, batch)).request_counts.completed == 5


async def test_a_quota_that_is_used_up_is_the_lines_error(
    client: openai.AsyncOpenAI, models: Models, running: Running
) -> None:
    await running.admin.set_tier("silver", {"quota_requests_day": "3"})
    done = await ended(client, await made(client, chats(5)))
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 3, 2)
    bad = await output(client, done.error_file_id)
    assert {line["response"]["body"]["error"]["code"] for line in bad} == {"quota_exceeded"}


async def test_what_is_not_answered_in_time_is_said_so_of_each_line(
    client: openai.AsyncOpenAI, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "WINDOW_S", 0)
    done = await ended(client, await made(client, chats(3)))
    assert (done.status, done.request_counts.failed) == ("expired", 3)
    errors = [line["error"]["code"] for line in await output(client, done.error_file_id)]
    assert errors == ["batch_expired"] * 3 and not models.asked


async def test_bad_lines_do_not_use_up_what_a_tenant_may_send_amiss(
    client: openai.AsyncOpenAI, models: Models, running: Running
) -> None:
    running.gateway.service.settings.change({"bad_requests_per_s": 1.0, "batch_at_once": 1})
    batch = await made(client, chats(30, temperature=9))
    await until(lambda: _counted(client, batch, 9))
    answer = await client.chat.completions.create(model="text", messages=[{"role": "user", "content": "me"}])
    assert answer.choices
    await client.batches.cancel(batch.id)
    await ended(client, batch)


async def _counted(client: openai.AsyncOpenAI, batch: Any, least: int) -> bool:
    return (await client.batches.retrieve(batch.id)).request_counts.failed >= least


async def test_nobody_sees_anothers_files_and_batches(
    client: openai.AsyncOpenAI, models: Models, running: Running
) -> None:
    batch = await ended(client, await made(client, chats(1)))
    await running.admin.create_tenant("other", tier="silver")
    key = (await running.admin.create_key("other"))[0]
    async with openai.AsyncOpenAI(base_url="http://gateway/v1", api_key=key, http_client=client._client) as other:
        for call in (
            other.batches.retrieve(batch.id),
            other.batches.cancel(batch.id),
            other.files.retrieve(batch.output_file_id),
            other.files.content(batch.output_file_id),
            other.files.delete(batch.input_file_id),
            other.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"),
        ):
            with pytest.raises(openai.NotFoundError):
                await call
        assert [f async for f in other.files.list()] == [] and [b async for b in other.batches.list()] == []
        # A tenant that takes the name of one that was deleted is another.
        await running.admin.delete_tenant("acme")
        await running.admin.create_tenant("acme", tier="silver", reuse=True)
        other.api_key = (await running.admin.create_key("acme"))[0]
        assert [f async for f in other.files.list()] == [] and [b async for b in other.batches.list()] == []
        with pytest.raises(openai.NotFoundError):
            await other.files.content(batch.output_file_id)


async def test_limits_of_files_and_batches_are_told(
    client: openai.AsyncOpenAI, models: Models, running: Running
) -> None:
    limits = {"batch_files": 2, "batch_open": 1, "batch_file_bytes": 2000, "batch_tenant_bytes": 3000}
    running.gateway.service.settings.change(limits)
    with pytest.raises(openai.APIStatusError) as error:
        await client.files.create(file=("a.jsonl", b"x" * 2001), purpose="batch")
    assert (error.value.status_code, error.value.body["code"]) == (413, "file_too_large")  # type: ignore[index]
    await client.files.create(file=("a.jsonl", b"x" * 1800), purpose="batch")
    with pytest.raises(openai.RateLimitError, match="room for 1,200 more"):
        await client.files.create(file=("a.jsonl", b"x" * 1800), purpose="batch")
    models.gate.clear()
    batch = await made(client, chats(1))
    with pytest.raises(openai.RateLimitError, match="2 files"):
        await client.files.create(file=("a.jsonl", b"x"), purpose="batch")
    with pytest.raises(openai.RateLimitError, match="1 batches that have not ended"):
        await client.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")
    with pytest.raises(openai.BadRequestError, match="reads this file"):
        await client.files.delete(batch.input_file_id)
    models.gate.set()
    await ended(client, batch)
    assert (await client.files.delete(batch.input_file_id)).deleted
    running.gateway.service.settings.change({"batch_total_bytes": 1900})
    with pytest.raises(openai.RateLimitError, match="room for"):
        await client.files.create(file=("a.jsonl", b"x" * 1000), purpose="batch")


async def test_output_that_has_no_room_ends_a_batch_and_says_so(
    client: openai.AsyncOpenAI, models: Models, running: Running
) -> None:
    running.gateway.service.settings.change({"batch_tenant_bytes": 6000, "batch_at_once": 1})
    done = await ended(client, await made(client, chats(20)))
    assert done.status == "completed" and done.errors.data[0].code == "batch_output_full"
    assert 0 < done.request_counts.completed < 20 == done.request_counts.completed + done.request_counts.failed
    bad = await output(client, done.error_file_id)
    assert {line["error"]["code"] for line in bad} == {"batch_output_full"}


@pytest.mark.parametrize(
    ("fields", "files", "said"),
    [
        ({"purpose": "batch"}, {}, "content type"),
        ({"purpose": "fine-tune"}, {"file": b"{}"}, "files are for batches"),
        ({}, {"file": b"{}"}, "'purpose'"),
        ({"purpose": "batch", "x": "1"}, {"file": b"{}"}, "'x'"),
        ({"purpose": "batch", "expires_after[seconds]": "5"}, {"file": b"{}"}, "from 3600"),
        ({"purpose": "batch"}, {"picture": b"{}"}, "'picture'"),
    ],
)
async def test_an_upload_is_told_what_is_wrong_with_it(
    client: openai.AsyncOpenAI, running: Running, fields: dict[str, str], files: dict[str, bytes], said: str
) -> None:
    headers = {"authorization": f"Bearer {client.api_key}"}
    answer = await running.client.post("/v1/files", data=fields, files=files or None, headers=headers)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


async def test_a_large_file_comes_back_as_it_was(client: openai.AsyncOpenAI, running: Running) -> None:
    data = bytes(range(256)) * 4200
    file = await client.files.create(file=("big.jsonl", data), purpose="batch")
    assert (file.bytes, file.filename, file.status) == (len(data), "big.jsonl", "processed")
    assert (await client.files.content(file.id)).content == data


async def test_only_what_is_served_may_be_asked(client: openai.AsyncOpenAI, models: Models) -> None:
    file = await client.files.create(file=("in.jsonl", b"{}"), purpose="batch")
    for endpoint in ("/v1/moderations", "/v1/models", "/models/labels/v1/chat/completions", "/admin/v1/keys"):
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
            await client.batches.create(
                input_file_id=file.id,
                endpoint=endpoint,  # type: ignore[arg-type]
                completion_window="24h",
            )
    with pytest.raises(openai.NotFoundError, match="No model"):
        await client.batches.create(
            input_file_id=file.id,
            endpoint="/models/none",  # type: ignore[arg-type]
            completion_window="24h",
        )
