"""A two-minute load on two gateways with the store killed for twenty seconds, without and with a gateway killed too.

Counts what clients of known keys were answered (pictures; texts, half of them streamed) and compares it with the usage
that the store has at the end: requests, images, tokens in, tokens out. Then streams are cut short, and what the store
says of them must lie between what their clients saw and what they asked for.

    python -m benchmarks.tenancy_outage            # about six minutes
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.tenancy_support import TEXT, Load, Server, milliseconds, serving
from tenants.metering.usage import read_days
from tenants.records import keyspace

TENANTS = 6


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder), counting=True) as server:
            for kill in (False, True):
                await run(server, options.seconds, kill_gateway=kill)
            await cut_streams(server)


async def run(server: Server, seconds: float, *, kill_gateway: bool) -> None:
    """One load: steady, store away, store back."""
    kind = "with a killed gateway" if kill_gateway else "no gateway killed"
    print(f"\n## {kind}", flush=True)
    await asyncio.sleep(2.0)
    keys = {}
    for number in range(TENANTS):
        tenant = f"t{number}-{'kill' if kill_gateway else 'plain'}"
        await server.admin.create_tenant(tenant, tier="gold")
        keys[tenant] = (await server.admin.create_key(tenant))[0]
    unknown = (await server.admin.create_key(next(iter(keys))))[0]
    load = Load(server.base_url, keys)
    begin = time.monotonic()
    load.start()
    await asyncio.sleep(5.0)  # until both gateways know every key and have loaded the scripts
    commands, warm = await counters(server), len(load.times)
    await asyncio.sleep(max(0.0, begin + seconds * 0.4 - time.monotonic()))
    steady = time.monotonic()
    print(round_trips(commands, await counters(server), len(load.times) - warm))
    server.valkey._server._process.kill()
    server.valkey._server._process.wait()
    await asyncio.sleep(5.0)
    await probes(server, unknown)
    killed_at = float("nan")
    if kill_gateway:
        victim = server.gateway_pids()[0]
        os.kill(victim, signal.SIGKILL)
        killed_at = time.monotonic()
    await asyncio.sleep(max(0.0, steady + 20.0 - time.monotonic()))
    await asyncio.to_thread(server.valkey.start)
    back = time.monotonic()
    await asyncio.sleep(max(0.0, begin + seconds - time.monotonic()))
    await load.stop()
    end = time.monotonic()
    print(f"requests: {sum(load.answered.values())} answered, {len(load.failed)} failed; away {back - steady:.1f} s")
    print(f"ms (median / p99 / max) steady: {milliseconds(load.between(begin, steady))}")
    print(f"ms while the store is away: {milliseconds(load.between(steady, back))}")
    print(f"ms after: {milliseconds(load.between(back, end))}")
    for started, tenant, outcome in load.failed[:20]:
        print(f"  failed: {tenant}, {started - killed_at:+.2f} s from the kill: {outcome[:120]}")
    await compare(server, load)


COUNTERS = ("requests", "images", "tokens_in", "tokens_out", "tokens_reserved")


async def compare(server: Server, load: Load) -> None:
    """Usage in the store against what clients counted."""
    store = server.admin._store

    async def differences() -> dict[str, list[int]]:
        booked = {t: (await read_days(store, t, 1))[0].total for t in load.keys}
        return {name: [booked[t][name] - load.used[t][name] for t in load.keys] for name in COUNTERS}

    for _ in range(150):
        if all(difference >= 0 for values in (await differences()).values() for difference in values):
            break
        await asyncio.sleep(0.2)
    await asyncio.sleep(3.0)
    counted = {name: sum(used[name] for used in load.used.values()) for name in COUNTERS}
    print(f"clients counted {counted}")
    for name, values in (await differences()).items():
        print(f"  usage less clients' count, {name} by tenant: {values}")


async def cut_streams(server: Server, streams: int = 100, seen: int = 5, most: int = 50) -> None:
    """Streams whose clients leave after a few events."""
    await server.admin.create_tenant("cut", tier="gold", fields={"concurrency": "1000", "tpm": "1000000"})
    key = (await server.admin.create_key("cut"))[0]
    body = {"model": TEXT, "prompt": "four words of prompt", "max_tokens": most, "stream": True}

    async def cut() -> None:
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=server.base_url, headers=headers, timeout=30.0) as client:
            async with client.stream("POST", "/v1/completions", json=body) as response:
                events = 0
                async for line in response.aiter_lines():
                    events += line.startswith("data: ")
                    if events == seen:
                        return

    for start in range(0, streams, 10):
        await asyncio.gather(*(cut() for _ in range(min(10, streams - start))))
    store = server.admin._store
    for _ in range(50):
        used = (await read_days(store, "cut", 1))[0].total
        if not used["tokens_reserved"]:
            break
        await asyncio.sleep(0.2)
    left = await store.execute("ZCARD", keyspace.running("cut"))
    raw = (await store.hashes(f"{keyspace.window('cut')}:tokens"))[0]
    window = int(raw.get(b"sum", b"0"))
    print(f"\n{streams} streams of {most} tokens cut after {seen} events: {dict(used)}, {left} leases left;")
    print(f"  tokens of the sliding minute: {window}, tokens used: {used['tokens_in'] + used['tokens_out']}")


async def counters(server: Server) -> dict[str, int]:
    """Calls by command, by the server's own statistics."""
    stats = await server.admin._store.execute("INFO", "commandstats")
    return {name.removeprefix("cmdstat_"): int(values["calls"]) for name, values in stats.items()}


def round_trips(before: dict[str, int], after: dict[str, int], requests: int) -> str:
    """Scripts and entitlement reads per request."""
    scripts = sum(after.get(name, 0) - before.get(name, 0) for name in ("evalsha", "eval"))
    reads = after.get("hgetall", 0) - before.get("hgetall", 0)
    return (
        f"server's statistics over {requests} requests: {scripts / requests:.3f} scripts a request,"
        f" {reads} entitlement reads in all"
    )


async def probes(server: Server, unknown: str) -> None:
    """What health and an unknown key are answered while the store is away."""
    async with httpx.AsyncClient(base_url=server.base_url, timeout=10.0) as client:
        print(f"healthz {(await client.get('/healthz')).status_code}", end="; ")
        ready = await client.get("/readyz")
        print(f"readyz {ready.status_code} {ready.json()['reasons'][0]}", end="; ")
        answer = await client.get("/v1/entitlements", headers={"authorization": f"Bearer {unknown}"})
        print(f"unseen key {answer.status_code}, Retry-After {answer.headers.get('retry-after')}")


if __name__ == "__main__":
    asyncio.run(main())
