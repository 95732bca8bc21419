"""Limits under concurrent load: 64 clients on two gateways' admissions, in processes of their own, against one store.

For rpm, tpm and a daily quota: the most that any sliding minute admitted (a request counts if it began and was admitted
within it), and what a quota admitted in all.

    python -m benchmarks.tenancy_limits            # about two and a half minutes
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from policies.errors import LimitExceeded
from policies.terms import Tier
from tenants.admission import Admission
from tenants.embedded import EmbeddedValkey
from tenants.entitlements import Entitlements, Limits
from tenants.store import TenantStore
from tenants.usage import read_days

REPLICAS, CLIENTS, TOKENS = 2, 64, 10
LIMITS = {"rpm": 300, "tpm": 5000, "quota_requests_day": 700}
Spans = list[tuple[float, float]]


def tenant(limit: str) -> Entitlements:
    """A tenant with one limit."""
    return Entitlements(
        tenant=limit,
        name=limit,
        tier=Tier(name="gold", utility=1.0),
        limits=Limits(**{limit: LIMITS[limit]}),
        key_limits=None,
        models=None,
        standing_focus={},
        key_id="",
        key_prefix="",
        scopes=None,
        key_expires_at=None,
        status="active",
        version="",
    )


def replica(url: str, seconds: float) -> dict[str, Spans]:
    """One gateway's share of the clients; when each admitted request began and was admitted, in monotonic seconds."""

    async def clients() -> dict[str, Spans]:
        admitted: dict[str, Spans] = {limit: [] for limit in LIMITS}
        async with await TenantStore.connect(url, timeout_s=5.0) as store:
            admission = Admission(store)
            until = time.monotonic() + seconds

            async def client(limit: str) -> None:
                own = tenant(limit)
                while (began := time.monotonic()) < until:
                    try:
                        async with admission.admit(own, model="m", tokens=TOKENS) as lease:
                            admitted[limit].append((began, time.monotonic()))
                            lease.settle(tokens_in=TOKENS)
                    except LimitExceeded:
                        await asyncio.sleep(0.02)

            await asyncio.gather(*(client(limit) for limit in LIMITS for _ in range(CLIENTS // REPLICAS)))
            await admission.aclose(20.0)
        return admitted

    return asyncio.run(clients())


def busiest_minute(spans: Spans) -> int:
    """The most requests that began and were admitted within one sliding minute."""
    spans = sorted(spans)
    return max(
        (sum(1 for began, done in spans[i:] if done <= start + 60.0) for i, (start, _) in enumerate(spans)), default=0
    )


async def booked(url: str) -> dict[str, dict[str, int]]:
    """What the store counted."""
    async with await TenantStore.connect(url, timeout_s=5.0) as store:
        return {limit: dict((await read_days(store, limit, 1))[0].total) for limit in LIMITS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=150.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder)) as valkey:
        with ProcessPoolExecutor(REPLICAS) as pool:
            runs = [pool.submit(replica, valkey.url, seconds) for _ in range(REPLICAS)]
            results = [run.result() for run in runs]
        counted = asyncio.run(booked(valkey.url))
    for limit, most in LIMITS.items():
        spans = [span for result in results for span in result[limit]]
        unit = TOKENS if limit == "tpm" else 1
        minute = busiest_minute(spans) * unit
        print(
            f"{limit}={most}: admitted {len(spans)} ({[len(r[limit]) for r in results]} by replica), booked"
            f" {counted[limit]['requests']}, refused {counted[limit]['rejected']}; busiest minute {minute}"
        )


if __name__ == "__main__":
    main()
