"""This gateway in front of the stub, without Ray: keys, limits of every kind and usage in a real store, receipts.

One process of uvicorn on uvloop and httptools, as Serve runs it. The key is written to a file.

Usage: python -m benchmarks.peers.own --port 9303 --stub http://127.0.0.1:9300 --key KEYFILE
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn

from benchmarks.gateway_cost import gateway
from deployments.contracts.catalog import TextDelta
from tests.deployments.gateway_support import Scripted


class Behind(Scripted):
    """The stub as a model: each call is one of its HTTP requests, over kept connections."""

    def __init__(self, stub: str, session: aiohttp.ClientSession) -> None:
        super().__init__()
        self._stub, self._session = stub, session

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        """Token ids of a prompt, which stands for the encoding that a replica or the gateway would do."""
        return [[1] * 8]

    async def stream(self, method: str, *args: Any, deadline: float) -> AsyncGenerator[Any]:
        """One piece, of the stub's answer."""
        body = {"model": "stub", "messages": [{"role": "user", "content": "Count to eight."}], "max_tokens": 8}
        async with self._session.post(f"{self._stub}/v1/chat/completions", json=body) as response:
            answer = await response.json()
        used = answer["usage"]
        text = answer["choices"][0]["message"]["content"]
        yield TextDelta(text, used["completion_tokens"], "stop", used["prompt_tokens"], used["completion_tokens"])


async def serve(port: int, stub: str, key_file: Path) -> None:
    """Until it is ended."""
    async with aiohttp.ClientSession() as session, gateway(Behind(stub, session)) as (app, key):
        key_file.write_text(key)
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", access_log=False, lifespan="off")
        await uvicorn.Server(config).serve()


def main() -> None:
    """Serve it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=9303)
    parser.add_argument("--stub", default="http://127.0.0.1:9300")
    parser.add_argument("--key", type=Path, required=True)
    given = parser.parse_args()
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(given.port, given.stub, given.key))


if __name__ == "__main__":
    main()
