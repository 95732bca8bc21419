"""What browsers and monitors ask for: HEAD, preflights, and headers that a page of another origin may read."""

from __future__ import annotations

import httpx
import pytest

from deployments.gateway.api.api import build_api
from deployments.gateway.api.browsers import EXPOSED
from tests.deployments.openai_support import Script

PAGE = "https://app.example.com"
KEY = {"authorization": "Bearer k"}


def calling(**args: object) -> httpx.AsyncClient:
    script = Script()
    script.settings.change(args)
    transport = httpx.ASGITransport(build_api(script))  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/v1/models/text", "/nowhere"])
async def test_head_is_get_without_a_body(path: str) -> None:
    async with calling() as client:
        head, get = [await client.request(method, path, headers=KEY) for method in ("HEAD", "GET")]
    assert head.status_code == get.status_code and head.content == b"" and get.content
    assert head.headers["content-length"] == get.headers["content-length"]


async def test_head_of_what_only_takes_posts_is_refused() -> None:
    async with calling() as client:
        assert (await client.head("/v1/chat/completions", headers=KEY)).status_code == 405


async def test_a_configured_origin_may_call_and_read_the_receipt() -> None:
    asks = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with calling(cors_origins=[PAGE]) as client:
        allowed = await client.options("/v1/chat/completions", headers=asks)
        other = await client.options("/v1/chat/completions", headers=asks | {"origin": "https://elsewhere.example"})
        body = {"model": "text", "messages": [{"role": "user", "content": "Hi"}]}
        answer = await client.post("/v1/chat/completions", json=body, headers=KEY | {"origin": PAGE})
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-origin" not in other.headers
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert set(EXPOSED) == set(answer.headers["access-control-expose-headers"].split(", "))


async def test_no_origin_may_call_unless_configured() -> None:
    async with calling() as client:
        answer = await client.get("/healthz", headers={"origin": PAGE})
    assert not [name for name in answer.headers if name.startswith("access-control")]
