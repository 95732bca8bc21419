"""Limits under concurrent load, over HTTP: 64 clients for each of three limits, on two gateways of a real `serve run`.

For rpm, tpm and a daily quota: the most that any sliding minute admitted (a request counts if it began and was answered
within it), and what a quota admitted in all.

    python -m benchmarks.tenancy_limits            # about three minutes
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.tenancy_support import TEXT, Server, serving
from tenants.metering.usage import read_days

CLIENTS = 64
LIMITS = {"rpm": 300, "tpm": 5_000, "quota_requests_day": 700}
BODY = {"model": TEXT, "prompt": "four words of prompt", "max_tokens": 6}
USED = 10
"""Tokens that such a request uses; more are reserved until it is answered."""


@dataclass
class Seen:
    """What the clients of one tenant were answered."""

    admitted: list[tuple[float, float]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=150.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder), counting=True) as server:
            await run(server, options.seconds)


async def run(server: Server, seconds: float) -> None:
    """Let all clients ask without a pause, and say what was admitted."""
    seen = {}
    clients = []
    until = time.monotonic() + seconds
    for limit, most in LIMITS.items():
        tenant = limit.replace("_", "-")
        await server.admin.create_tenant(tenant, tier="gold", fields={limit: str(most)})
        key = (await server.admin.create_key(tenant))[0]
        seen[limit] = Seen()
        clients += [client(server.base_url, key, seen[limit], until) for _ in range(CLIENTS)]
    before = server.gateway_seconds()
    await asyncio.gather(*clients)
    spent = [after - start for after, start in zip(server.gateway_seconds(), before, strict=True)]
    print(f"processor seconds of each gateway: {[round(s, 1) for s in spent]}")
    await asyncio.sleep(3.0)
    for limit, own in seen.items():
        await report(server, limit, own)


async def client(base_url: str, key: str, seen: Seen, until: float) -> None:
    """Ask again and again; after a refusal soon, whatever Retry-After says."""
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=60.0) as http:
        while (began := time.monotonic()) < until:
            response = await http.post("/v1/completions", json=BODY)
            if response.status_code == 200:
                seen.admitted.append((began, time.monotonic()))
            else:
                seen.others[f"{response.status_code} {response.json()['error']['code']}"] += 1
                await asyncio.sleep(0.1)


def busiest_minute(spans: list[tuple[float, float]]) -> int:
    """The most requests that began and were answered within one sliding minute."""
    spans = sorted(spans)
    return max(
        (sum(1 for began, done in spans[i:] if done <= start + 60.0) for i, (start, _) in enumerate(spans)), default=0
    )


async def report(server: Server, limit: str, own: Seen) -> None:
    """One limit's outcome."""
    used = (await read_days(server.admin._store, limit.replace("_", "-"), 1))[0].total
    unit = USED if limit == "tpm" else 1
    print(
        f"{limit}={LIMITS[limit]}: answered {len(own.admitted)}, booked {used['requests']} with {used['tokens_in']} and"
        f" {used['tokens_out']} tokens, refused {used['rejected']} {dict(own.others)}; busiest minute"
        f" {busiest_minute(own.admitted) * unit}"
    )


if __name__ == "__main__":
    asyncio.run(main())
