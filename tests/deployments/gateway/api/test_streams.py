"""Streams whose next piece is long in coming, as clients that others wrote read them, over a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
import uvicorn
from huggingface_hub import InferenceClient

from deployments.gateway.api import generation, streams
from deployments.gateway.api.api import build_api
from deployments.gateway.api.streams import COMMENT, LeasedStream, Waited
from tests.deployments.openai_support import QUESTION, Script
from tests.e2e.conftest import free_port

BODY = {"model": "text", "messages": QUESTION, "stream": True}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    """Pieces take some pauses to come."""
    monkeypatch.setattr(generation, "COMMENT_EVERY_S", 0.01)
    script.pause_s = 0.1


@pytest_asyncio.fixture
async def url(script: Script) -> AsyncIterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(build_api(script), port=port, log_level="error", lifespan="off"))  # type: ignore[arg-type]
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    await serving


async def test_comments_come_before_the_first_piece_and_between_pieces(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, headers={"x-api-key": "k"}) as client:
        events = (await client.post("/v1/chat/completions", json=BODY)).text.split("\n\n")
    comments = [at for at, event in enumerate(events) if event + "\n\n" == COMMENT]
    pieces = [at for at, event in enumerate(events) if event.startswith("data: {")]
    assert comments[0] < pieces[0] and any(pieces[0] < at < pieces[-1] for at in comments)


async def test_openais_client_leaves_comments_out(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(model="text", messages=QUESTION, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "Hello 0"


async def test_huggingfaces_client_leaves_comments_out(url: str) -> None:
    def ask() -> str:
        client = InferenceClient(model=f"{url}/models/text", token="k")
        return "".join(c.choices[0].delta.content or "" for c in client.chat_completion(QUESTION, stream=True))

    assert await asyncio.to_thread(ask) == "Hello 0"


async def test_an_error_after_the_stream_has_begun_is_its_last_event(url: str, script: Script) -> None:
    script.fails = True
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(model="text", messages=QUESTION, stream=True)
        with pytest.raises(openai.APIError, match="has stopped"):
            [chunk async for chunk in stream]


async def test_a_client_that_leaves_while_it_waits_frees_its_lease(url: str, script: Script) -> None:
    script.pause_s = 600.0
    async with httpx.AsyncClient(base_url=url, headers={"x-api-key": "k"}) as client:
        async with client.stream("POST", "/v1/chat/completions", json=BODY) as response:
            assert await anext(response.aiter_raw()) == COMMENT.encode()
    while not script.released:
        await asyncio.sleep(0.01)


async def test_a_stream_that_is_not_read_ends_with_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "READ_BY_S", 0.0)
    released: list[str] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # a client's window is full

    async def receive() -> Any:
        return await asyncio.Event().wait()

    async def events() -> AsyncIterator[str]:
        yield "data: a\n\n"

    stack = AsyncExitStack()
    stack.callback(released.append, "lease")
    stream = LeasedStream(events(), stack, asyncio.get_running_loop().time() + 0.05)
    await stream({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)
    assert released == ["lease"]


async def test_an_item_that_is_waited_for_is_not_lost_and_closing_ends_what_makes_it() -> None:
    closed: list[str] = []

    async def items() -> AsyncGenerator[int]:
        try:
            yield 1
            await asyncio.sleep(0.03)
            yield 2
            await asyncio.Event().wait()
        finally:
            closed.append("items")

    async with aclosing(Waited(items())) as waited:
        assert await waited.ready(None) and await waited.ready(0.0)
        assert await anext(waited) == 1
        assert not await waited.ready(0.0)
        assert await anext(waited) == 2
        assert not await waited.ready(0.01)
    assert closed == ["items"]
