"""What a request costs a gateway: processor time of its HTTP application alone, by parts, and by the token of a stream.

The whole application (routes, middlewares, entitlements, admission on a real store, receipts) is called as an ASGI
server calls it, with a model that answers at once: neither the HTTP server nor Serve nor the call of a replica is in
it. Requests come some at a time, as a busy gateway has them. Rounds alternate; medians and quartiles of process time.

Usage: python -m benchmarks.gateway_cost [--rounds 9] [--json FILE] [--profile picture]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import pstats
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.config import AppArgs, StoreArgs, Task
from deployments.contracts.catalog import ModelInfo, TextDelta
from tenants.admin import installation
from tenants.admin.admin import TenantAdmin
from tenants.store.embedded import EmbeddedValkey
from tests.deployments.gateway_support import Scripted, opened

AT_ONCE = 8
TOKENS = 256
TIER = {
    "utility": "0.9",
    "rpm": "100000000",
    "tpm": "100000000",
    "concurrency": "100000",
    "quota_images_day": "10000000000",
}
"""Limits of every kind, none of which is reached."""
Asked = Callable[[], Coroutine[Any, Any, int]]


class Answering(Scripted):
    """Models that answer at once: a picture with one label, a text with so many tokens, one at a time."""

    async def stream(self, method: str, *args: Any, deadline: float) -> AsyncGenerator[Any]:
        for at in range(TOKENS):
            last = at == TOKENS - 1
            yield TextDelta(" word", 1, "length" if last else None, len(args[0][0]), at + 1)
            await asyncio.sleep(0)  # as each comes with a message of its own


@dataclass(frozen=True)
class Case:
    """A request that is measured; `units` are what it is divided by."""

    path: str
    body: bytes
    kind: str
    units: int = 1
    method: str = "POST"


def cases() -> dict[str, Case]:
    """By name."""
    said: dict[str, Any] = {"model": "text", "prompt": [[1, 2, 3]], "max_tokens": TOKENS}
    streamed = json.dumps({**said, "stream": True}).encode()
    return {
        "health": Case("/healthz", b"", "", method="GET"),
        "picture": Case("/models/pictures", b"\xff\xd8" + bytes(900), "image/jpeg"),
        "text, whole": Case("/v1/completions", json.dumps(said).encode(), "application/json"),
        "a streamed token": Case("/v1/completions", streamed, "application/json", TOKENS),
    }


async def call(app: Any, case: Case, key: str) -> int:
    """One request, as an ASGI server makes it; its status."""
    headers = [(b"authorization", b"Bearer " + key.encode()), (b"host", b"gateway"), (b"accept", b"*/*")]
    headers += [(b"content-type", case.kind.encode()), (b"content-length", b"%d" % len(case.body))]
    headers += [(b"x-request-id", b"2f9d5f3e-8f0e-4d0f-9f51-c6b0c6d7a111"), (b"user-agent", b"benchmark")]
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": case.method,
        "scheme": "http", "path": case.path, "raw_path": case.path.encode(), "query_string": b"", "root_path": "",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "state": {},
    }  # fmt: skip
    sent, status, left = False, 0, asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await left.wait()
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": case.body, "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            left.set()

    await app(scope, receive, send)
    return status


@asynccontextmanager
async def gateway() -> AsyncIterator[tuple[Any, str]]:
    """A gateway's HTTP application, and a key of it."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder) / "store") as valkey:
        args = AppArgs.model_validate(
            {
                "models": [{"id": "pictures", "task": "image-classification", "source": "none"}],
                "store": StoreArgs(redis_url=valkey.url, data_dir=folder),
            }
        )
        made = await opened(args)
        await installation.create_secrets(made.store)
        await made.receipts.read()
        admin = TenantAdmin(made.store, who="benchmark")
        await admin.create_tier("gold", TIER)
        await admin.create_tenant("acme", tier="gold")
        key = (await admin.create_key("acme"))[0]
        made.service.models = models = Answering(lambda *_: [{"label": "cat", "score": 0.97}])
        common: dict[str, Any] = {"floor": 0.1, "created": 1}
        models.add(ModelInfo(id="pictures", task=Task.CLASSIFICATION, classes=("cat", "dog"), **common))
        models.add(ModelInfo(id="text", task=Task.TEXT, classes=None, context=4096, **common))
        gc.collect()
        gc.freeze()  # as a gateway does in its own process
        try:
            yield made.__serve_build_asgi_app__(), key
        finally:
            await type(made).__mro__[1].__del__(made)


async def spent(app: Any, case: Case, key: str, requests: int) -> float:
    """Milliseconds of processor time a unit."""

    async def worker(count: int) -> None:
        for _ in range(count):
            status = await call(app, case, key)
            if status != 200:
                raise RuntimeError(f"{case.path} answered {status}")

    began = time.process_time()
    await asyncio.gather(*(worker(requests // AT_ONCE) for _ in range(AT_ONCE)))
    return (time.process_time() - began) / (requests // AT_ONCE * AT_ONCE * case.units) * 1e3


async def measure(rounds: int, profiled: str | None) -> dict[str, list[float]]:
    """Milliseconds by case, of each round; with a profile of one case instead."""
    async with gateway() as (app, key):
        asked = cases()
        for case in asked.values():
            await spent(app, case, key, AT_ONCE * 2)
        if profiled:
            with cProfile.Profile(time.process_time) as profile:
                await spent(app, asked[profiled], key, 2000 // asked[profiled].units + AT_ONCE)
            pstats.Stats(profile).sort_stats("tottime").print_stats(60)
            return {}
        found: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(rounds):
            for name, case in asked.items():
                found[name].append(await spent(app, case, key, max(AT_ONCE, 400 // case.units)))
        return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", choices=cases())
    given = parser.parse_args()
    found = asyncio.run(measure(given.rounds, given.profile))
    if given.profile:
        return
    print("| | ms, median | quartiles |\n|---|---|---|")
    for name, values in found.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} |")
    if given.json:
        given.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
