"""A prompt beyond the context as LiteLLM sees it: agents on it, such as aider, then shorten the conversation."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import uvicorn

from deployments.gateway.api.api import build_api
from tests.deployments.openai_support import Script


@pytest_asyncio.fixture
async def url(script: Script) -> AsyncIterator[str]:
    """Of a gateway on a script, listening."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(build_api(script), log_level="warning", lifespan="off"))  # type: ignore[arg-type]
        serving = asyncio.create_task(server.serve([listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        server.should_exit = True
        await serving


@pytest.mark.filterwarnings("ignore")  # LiteLLM's own
@pytest.mark.parametrize("stream", [False, True])
async def test_litellm_knows_a_prompt_beyond_the_context(
    url: str, script: Script, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the internet at import
    litellm = pytest.importorskip("litellm")
    for length in (20_000, 100_000):  # encoded first, or seen by its length alone
        turns = [{"role": "user", "content": "a" * length}]
        with pytest.raises(litellm.ContextWindowExceededError) as refused:
            await litellm.acompletion(
                model="openai/text", messages=turns, api_base=url, api_key="k", stream=stream, num_retries=0
            )
        assert "maximum context length is 1000 tokens" in str(refused.value)
    assert not script.costs
