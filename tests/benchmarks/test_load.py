"""The load tool against a server of its own: what was due when, what came of it, and histograms that others read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

hdrh = pytest.importorskip("hdrh.histogram", reason="needs hdrhistogram, of the extra 'bench'")

from benchmarks.load import Ask, Load, plot, schedule  # noqa: E402


@pytest_asyncio.fixture
async def server() -> AsyncIterator[TestServer]:
    async def picture(request: web.Request) -> web.Response:
        refused = request.headers["authorization"] == "Bearer k-free"
        return web.json_response([], status=429 if refused else 200)

    async def chat(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        events = [{"choices": [{"delta": {"content": "a"}}]}, {"choices": [], "usage": {"completion_tokens": 5}}]
        for event in events:
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/models/pictures", picture)
    app.router.add_post("/v1/chat/completions", chat)
    async with TestServer(app) as made:
        yield made


async def test_every_request_is_sent_and_told_by_tenant_and_model(server: TestServer, tmp_path: Path) -> None:
    load = Load(str(server.make_url("")), {"gold": "k-gold", "free": "k-free"}, seed=1)
    due = schedule(200.0, 0.4, seed=1)
    asks = [Ask.read("pictures:pictures:2"), Ask.read("chat:text:1:5")]
    await load.run(due, asks, {"gold": 1.0, "free": 1.0}, seed=1)
    told = {cell: load.cells[cell].told() for cell in load.cells}
    assert sum(sum(one["statuses"].values()) for one in told.values()) == len(due)
    assert set(told["free", "pictures"]["statuses"]) == {"429"} and set(told["gold", "pictures"]["statuses"]) == {"200"}
    text = told["gold", "text"]
    assert text["tokens"] == 5 * text["statuses"]["200"] and text["first_token_ms"]["p50"] <= text["ms"]["p50"]
    kept = hdrh.HdrHistogram.decode(text["ms"]["hdr"])
    assert kept.get_total_count() == text["statuses"]["200"]
    plot(load.cells, tmp_path / "load.png")
    assert (tmp_path / "load.png").stat().st_size > 1000


def test_arrivals_are_as_many_as_asked_for_and_none_waits_for_another() -> None:
    due = schedule(100.0, 50.0, seed=3)
    assert len(due) == pytest.approx(5000, rel=0.05) and due == sorted(due) == schedule(100.0, 50.0, seed=3)
