"""How soon a raw `redis-cli` edit is what two gateways answer: 200 edits under load, over HTTP, on a real `serve run`.

An edit's time runs from the start of `redis-cli` (its own start included) to the start of the last request that was
still answered under the old record.

    python -m benchmarks.tenancy_propagation
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.tenancy_support import Load, Server, milliseconds, serving

PROBERS = 4
"""Clients that ask for nothing but their terms, without a pause: spread over both gateways by HAProxy."""
FIRST = 1000
"""The limit that the first edit sets; each sets one more."""


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder)) as server:
            await run(server, options.edits)


async def run(server: Server, edits: int) -> None:
    """Edit again and again under load, and time each."""
    await server.admin.create_tenant("acme", tier="gold")
    await server.admin.create_tenant("other", tier="gold")
    key = (await server.admin.create_key("acme"))[0]
    load = Load(server.base_url, {"other": (await server.admin.create_key("other"))[0]}, clients_per_key=4)
    seen: list[tuple[float, float, int]] = []  # began, ended, the limit that was answered
    stop = asyncio.Event()

    async def prober() -> None:
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=server.base_url, headers=headers, timeout=30.0) as client:
            while not stop.is_set():
                began = time.monotonic()
                limit = (await client.get("/v1/entitlements")).json()["limits"]["concurrency"]
                seen.append((began, time.monotonic(), limit or 0))

    probers = [asyncio.create_task(prober()) for _ in range(PROBERS)]
    load.start()
    await asyncio.sleep(3.0)
    edited = [await edit(server.valkey.url, FIRST + number) for number in range(edits)]
    stop.set()
    await asyncio.gather(*probers)
    await load.stop()
    print(f"{edits} edits; answers: {len(seen)} of the edited tenant, {len(load.times)} of the load")
    report(edited, seen)


async def edit(url: str, value: int) -> tuple[float, float]:
    """Set the tenant's limit with `redis-cli`, and wait a little; when it began and when it was done."""
    command = ("redis-cli", "-u", url, "--no-auth-warning", "HSET", "tenant:acme", "concurrency", str(value))
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    await process.wait()
    done = time.monotonic()
    await asyncio.sleep(0.3)
    return began, done


def report(edited: list[tuple[float, float]], seen: list[tuple[float, float, int]]) -> None:
    """Print how long the old record was still answered after each edit."""
    from_start, from_end = [], []
    for i, (began, done) in enumerate(edited):
        until = edited[i + 1][0] if i + 1 < len(edited) else float("inf")
        # An answer counts as made when it began: what came back later may have been under way.
        stale = [b for b, _, limit in seen if done <= b < until and limit < FIRST + i]
        last = max(stale, default=done)
        from_start.append(last - began)
        from_end.append(last - done)
    print(f"ms from redis-cli's start to the last request begun that met the old record: {milliseconds(from_start)}")
    print(f"ms from redis-cli's end: {milliseconds(from_end)}; edits with no stale answer: {from_end.count(0.0)}")


if __name__ == "__main__":
    asyncio.run(main())
