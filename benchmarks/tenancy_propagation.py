"""How soon a raw `redis-cli` edit is what two gateways answer: 200 edits under load, over HTTP, on a real `serve run`.

An edit ends with the start of the last request that was still answered under the old record. It is timed from three
moments: the start of `redis-cli`, the server's execution of its HSET (as MONITOR says), and the end of `redis-cli`.

    python -m benchmarks.tenancy_propagation
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

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
        async with serving(Path(folder), counting=True) as server:
            await run(server, options.edits)


async def run(server: Server, edits: int) -> None:
    """Edit again and again under load, and time each."""
    await server.admin.create_tenant("acme", tier="gold")
    await server.admin.create_tenant("other", tier="gold")
    key = (await server.admin.create_key("acme"))[0]
    load = Load(server.base_url, {"other": (await server.admin.create_key("other"))[0]}, clients_per_key=4)
    seen: list[tuple[float, float, int]] = []  # began, ended, the limit that was answered
    others: Counter[int] = Counter()
    stop = asyncio.Event()

    async def prober() -> None:
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=server.base_url, headers=headers, timeout=30.0) as client:
            while not stop.is_set():
                began = time.monotonic()
                answer = await client.get("/v1/entitlements")
                if answer.status_code == 200:
                    seen.append((began, time.monotonic(), answer.json()["limits"]["concurrency"] or 0))
                else:
                    others[answer.status_code] += 1

    probers = [asyncio.create_task(prober()) for _ in range(PROBERS)]
    executed: dict[int, float] = {}
    monitor = await watch(server.valkey.url, executed)
    load.start()
    await asyncio.sleep(3.0)
    edited = [await edit(server.valkey.url, FIRST + number) for number in range(edits)]
    stop.set()
    await asyncio.gather(*probers)
    await load.stop()
    monitor.cancel()
    print(f"{edits} edits; answers: {len(seen)} of the edited tenant, {len(load.times)} of the load; {dict(others)}")
    report(edited, executed, seen)


async def watch(url: str, executed: dict[int, float]) -> asyncio.Task[None]:
    """Note when the server executes each edit, by its own clock, in this process's monotonic seconds."""
    server = urlsplit(url)
    reader, writer = await asyncio.open_connection(server.hostname, server.port)
    writer.write(f"AUTH {server.password}\r\nMONITOR\r\n".encode())
    offset = time.time() - time.monotonic()

    async def read() -> None:
        try:
            while line := await reader.readline():
                match = re.match(rb'\+([0-9.]+) .*"HSET" "tenant:acme" "concurrency" "(\d+)"', line)
                if match is not None:
                    executed[int(match[2])] = float(match[1]) - offset
        finally:
            writer.close()

    return asyncio.create_task(read())


async def edit(url: str, value: int) -> tuple[float, float]:
    """Set the tenant's limit with `redis-cli`, and wait a little; when it began and when it was done."""
    command = ("redis-cli", "-u", url, "--no-auth-warning", "HSET", "tenant:acme", "concurrency", str(value))
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    await process.wait()
    done = time.monotonic()
    await asyncio.sleep(0.3)
    return began, done


def report(edited: list[tuple[float, float]], executed: dict[int, float], seen: list[tuple[float, float, int]]) -> None:
    """Print how long the old record was still answered after each edit."""
    from_start, from_execution, from_end, own = [], [], [], []
    for i, (began, done) in enumerate(edited):
        at = executed[FIRST + i]
        until = edited[i + 1][0] if i + 1 < len(edited) else float("inf")
        # An answer counts as made when it began: what came back later may have been under way.
        last = max((b for b, _, limit in seen if began <= b < until and limit < FIRST + i), default=began)
        from_start.append(last - began)
        from_execution.append(max(0.0, last - at))
        from_end.append(max(0.0, last - done))
        own.append(at - began)
    print("ms, median / p99 / max, to the last request begun that met the old record:")
    print(f"  from redis-cli's start {milliseconds(from_start)}, of which until the server's HSET {milliseconds(own)}")
    print(
        f"  from the server's HSET {milliseconds(from_execution)}; no stale answer at all: {from_execution.count(0.0)}"
    )
    print(f"  from redis-cli's end {milliseconds(from_end)}; no stale answer at all: {from_end.count(0.0)}")


if __name__ == "__main__":
    asyncio.run(main())
