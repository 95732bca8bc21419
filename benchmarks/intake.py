"""How long the worst bodies within the limits hold a gateway's event loop, through its whole HTTP application.

A watchdog on the loop wakes every millisecond; what is printed is the longest that it was late while a body was
answered, median and worst of some rounds, beside the same for an ordinary request.

Usage: python -m benchmarks.intake [--rounds 9]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from deployments.config import AppArgs, StoreArgs
from deployments.serving.ingress import TenantGateway
from deployments.serving.store import StoreAccess
from tenants.admin.admin import TenantAdmin
from tenants.store.embedded import EmbeddedValkey

MOST = 2**20
"""Bytes of a text body, as configured by default."""
TURN = {"role": "user", "content": "x"}


def bodies() -> dict[str, bytes]:
    """By name; each as large as is taken."""

    def filled(make: Callable[[int], dict[str, object]], each: int) -> bytes:
        return json.dumps({"model": "m", **make((MOST - 200) // each)}, separators=(",", ":")).encode()

    return {
        "ordinary": json.dumps({"model": "m", "messages": [TURN]}).encode(),
        "one long text": filled(lambda n: {"messages": [{**TURN, "content": "a" * n}]}, 1),
        "messages of another kind": filled(lambda n: {"messages": [0] * n}, 2),
        "as many, few enough to be parsed": filled(lambda n: {"messages": [0] * min(n, 130_000)}, 2),
        "messages": filled(lambda n: {"messages": [TURN] * n}, 35),
        "parts": filled(lambda n: {"messages": [{**TURN, "content": [{"type": "text", "text": ""}] * n}]}, 28),
        "unknown fields": filled(lambda n: {"messages": [TURN], **{f"u{i}": 0 for i in range(n)}}, 11),
        "focus": filled(lambda n: {"messages": [TURN], "focus": {f"u{i}": 9 for i in range(n)}}, 11),
        "biases": filled(lambda n: {"messages": [TURN], "logit_bias": {f"{i}": 999 for i in range(n)}}, 12),
        "token ids": filled(lambda n: {"prompt": [100_000] * min(n, 130_000)}, 7),
        "lists in lists": filled(lambda n: {"prompt": [[0]] * min(n, 30_000)}, 4),
    }


async def late(work: Callable[[], object]) -> float:
    """Milliseconds that the loop was held at most while an awaitable ran."""
    worst, stop = 0.0, asyncio.Event()

    async def watch() -> None:
        nonlocal worst
        while not stop.is_set():
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - began - 0.001)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.005)
    worst = 0.0
    await work()  # type: ignore[misc]
    stop.set()
    await watching
    return worst * 1e3


class _Gateway(TenantGateway):
    def __del__(self) -> None:  # type: ignore[override]
        """Outside Serve nobody awaits the destructor."""


async def measure(rounds: int) -> None:
    """Print a Markdown table."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder) / "store") as valkey:
        args = AppArgs.model_validate(
            {
                "models": [{"id": "m", "task": "text-generation", "source": "none"}],
                "store": StoreArgs(redis_url=valkey.url, data_dir=folder),
                "gateway": {"bad_requests_per_s": 1e6},
            }
        )
        gateway = _Gateway.__new__(_Gateway)
        await TenantGateway.__init__(gateway, args, {}, StoreAccess(None, args.store))
        gc.collect()
        gc.freeze()  # as a gateway does in its own process
        admin = TenantAdmin(gateway.store, who="benchmark")
        await admin.create_tier("gold", {"utility": "1.0"})
        await admin.create_tenant("acme", tier="gold")
        key = (await admin.create_key("acme"))[0]
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        transport = httpx.ASGITransport(gateway.__serve_build_asgi_app__())
        print("| body | MiB | status | loop held, median | worst |\n|---|---|---|---|---|")
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            for name, body in bodies().items():
                path = "/v1/completions" if b'"prompt"' in body[:40] else "/v1/chat/completions"
                statuses: set[int] = set()

                async def ask(path: str = path, body: bytes = body, statuses: set[int] = statuses) -> None:
                    statuses.add((await client.post(path, content=body, headers=headers)).status_code)

                held = [await late(ask) for _ in range(rounds)]
                print(
                    f"| {name} | {len(body) / 2**20:.2f} | {', '.join(map(str, statuses))} |"
                    f" {statistics.median(held):.1f} ms | {max(held):.1f} ms |"
                )
        await TenantGateway.__del__(gateway)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    asyncio.run(measure(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
