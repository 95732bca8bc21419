"""What the store spends on a busy tenant's admission, settlement and refusal, in microseconds of its one thread.

The tenant has every kind of limit (rpm, tpm, concurrency, quotas of a day and a month) and has been busy for over a
minute, so that its sliding minutes are full. The server's own clock measures (`INFO latencystats`): scripts alone, no
network; medians, since others may share the processor.

    python -m benchmarks.metering_cost            # about a minute and a half
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from policies.errors import LimitExceeded
from policies.terms import Tier
from tenants.live.entitlements import Entitlements, Limits
from tenants.metering.admission import Admission
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore

MANY = 10**9
ROUND = 3_000


def tenant(rpm: int) -> Entitlements:
    """With every kind of limit."""
    quotas = {f"quota_{what}_{period}": MANY for what in ("requests", "tokens") for period in ("day", "month")}
    return Entitlements(
        tenant="busy",
        name="busy",
        tier=Tier(name="gold", utility=1.0),
        limits=Limits(rpm=rpm, tpm=MANY, concurrency=10_000, **quotas),
        key_limits=None,
        models=None,
        standing_focus={},
        key_id="ab" * 6,
        key_prefix="",
        scopes=None,
        key_expires_at=None,
        status="active",
        version="0" * 12,
    )


async def median(store: TenantStore) -> float:
    """Microseconds that half of the scripts since the last question took at most."""
    stats = await store.execute("INFO", "latencystats")
    await store.execute("CONFIG", "RESETSTAT")
    return float(stats["latency_percentiles_usec_evalsha"]["p50"])


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--warm", type=float, default=65.0, help="seconds of load before measuring")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder)) as server:
        async with await TenantStore.connect(server.url, timeout_s=5.0) as store:
            await measure(store, options.warm)


async def measure(store: TenantStore, warm: float) -> None:
    """Warm up, then one kind of call after another."""
    admission = Admission(store)
    own = tenant(MANY)
    until = time.monotonic() + warm
    while time.monotonic() < until:
        async with admission.admit(own, model="m", tokens=100) as lease:
            lease.settle(tokens_in=10, tokens_out=20)
        await asyncio.sleep(0.02)
    await admission.drain(20.0)

    await median(store)
    leases = [await admission.admit(own, model="m", tokens=100).__aenter__() for _ in range(ROUND)]
    spans = {"admission": await median(store)}
    for lease in leases:
        lease.settle(tokens_in=10, tokens_out=20)
        await lease.__aexit__(None, None, None)
    await admission.drain(60.0)
    spans["settlement"] = await median(store)
    full = tenant(sum(r.used for r in (await admission.look(own)).readings if r.limit.field == "rpm"))
    before = time.perf_counter()
    for _ in range(ROUND):
        try:
            await admission.admit(full, model="m", tokens=100).__aenter__()
        except LimitExceeded:
            continue
    took = time.perf_counter() - before
    spans["refusal"] = await median(store)
    await admission.drain(20.0)
    for name, span in spans.items():
        print(f"{name}: {span:.0f} us of the store")
    print(f"refusals one after another: {ROUND / took:.0f}/s")
    await admission.aclose()


if __name__ == "__main__":
    asyncio.run(main())
