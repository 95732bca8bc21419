"""A two-minute load on two gateways with the store killed for twenty seconds, without and with a gateway killed too.

Counts what clients of known keys were answered and compares it with the usage that the store has at the end.

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

from benchmarks.tenancy_support import Load, Server, milliseconds, serving
from tenants.usage import read_days

TENANTS = 6


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder)) as server:
            for kill in (False, True):
                await run(server, options.seconds, kill_gateway=kill)


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


async def compare(server: Server, load: Load) -> None:
    """Usage in the store against what clients counted."""
    store = server.admin._store
    for _ in range(150):
        booked = {t: dict((await read_days(store, t, 1))[0].total) for t in load.keys}
        missing = {t: booked[t]["requests"] - load.answered[t] for t in load.keys}
        if all(difference >= 0 for difference in missing.values()):
            break
        await asyncio.sleep(0.2)
    await asyncio.sleep(3.0)
    booked = {t: dict((await read_days(store, t, 1))[0].total) for t in load.keys}
    difference = {t: booked[t]["requests"] - load.answered[t] for t in load.keys}
    images = {t: booked[t]["images"] - load.answered[t] for t in load.keys}
    print(
        f"usage less clients' count, requests by tenant: {list(difference.values())}, images: {list(images.values())}"
    )


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
