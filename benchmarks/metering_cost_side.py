"""One side of `metering_cost.py`: the same requests by the `tenants` package on the path, this one or an earlier.

Reads orders from standard input, a line each, and answers each with a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from policies.errors import LimitExceeded
from policies.terms import Tier

try:
    from tenants.live.entitlements import Entitlements, Limits
    from tenants.metering.admission import Admission
    from tenants.store.store import TenantStore
except ImportError:  # an earlier tree: one folder
    from tenants.admission import Admission  # type: ignore[no-redef,import-not-found]
    from tenants.entitlements import Entitlements, Limits  # type: ignore[no-redef,import-not-found]

    from tenants.store import TenantStore  # type: ignore[no-redef,attr-defined]

MANY = 10**9
TOGETHER = 64


def tenant(name: str, rpm: int) -> Entitlements:
    """With every kind of limit."""
    quotas = {f"quota_{what}_{period}": MANY for what in ("requests", "tokens") for period in ("day", "month")}
    return Entitlements(
        tenant=name,
        name=name,
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


class Meter:
    """Processor time of the store and of this process since the last question, and its scripts' median time."""

    def __init__(self, store: TenantStore) -> None:
        self._store = store
        self._server = self._own = self._wall = 0.0

    async def read(self, calls: float) -> dict[str, float]:
        """Microseconds a call; `share` is the store's part of one core, in per cent."""
        stats = await self._store.execute("INFO", "latencystats")
        cpu = await self._store.execute("INFO", "cpu")
        server, own, wall = cpu["used_cpu_user"] + cpu["used_cpu_sys"], time.process_time(), time.monotonic()
        found = {
            "script": float(stats.get("latency_percentiles_usec_evalsha", {"p50": 0.0})["p50"]),
            "store": (server - self._server) / calls * 1e6,
            "gateway": (own - self._own) / calls * 1e6,
            "share": (server - self._server) / (wall - self._wall) * 100,
        }
        await self._store.execute("CONFIG", "RESETSTAT")
        self._server, self._own, self._wall = server, time.process_time(), time.monotonic()
        return found


async def warm(admission: Admission, seconds: float) -> None:
    """A little load, so that every second of the minute has its bucket."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for own in (tenant("busy", MANY), tenant("storm", 1000)):
            try:
                async with admission.admit(own, model="m", tokens=100) as lease:
                    lease.settle(tokens_in=10, tokens_out=20)
            except LimitExceeded:
                pass
        await asyncio.sleep(0.02)
    await admission.drain(20.0)


async def requests(admission: Admission, meter: Meter, count: int) -> dict[str, float]:
    """So many requests, many at a time: first all are admitted, then all settled."""
    own, leases = tenant("busy", MANY), []
    await meter.read(1)
    for _ in range(count // TOGETHER):
        leases += await asyncio.gather(
            *(admission.admit(own, model="m", tokens=100).__aenter__() for _ in range(TOGETHER))
        )
    found = {f"admit_{name}": value for name, value in (await meter.read(len(leases))).items()}
    alone = [await admission.admit(own, model="m", tokens=100).__aenter__() for _ in range(count // 4)]
    found |= {f"alone_{name}": value for name, value in (await meter.read(len(alone))).items()}
    leases += alone
    for lease in leases:
        lease.settle(tokens_in=10, tokens_out=20)
        await lease.__aexit__(None, None, None)
    await admission.drain(60.0)
    return found | {f"settle_{name}": value for name, value in (await meter.read(len(leases))).items()}


async def storm(admission: Admission, meter: Meter, seconds: float, per_s: int) -> dict[str, float]:
    """Retries of a tenant whose minute is full, at a pace; scaled where this machine does not keep it up."""
    own = tenant("storm", 1000)
    refused = 0

    async def retry() -> None:
        nonlocal refused
        try:
            await admission.admit(own, model="m", tokens=100).__aenter__()
        except LimitExceeded:
            refused += 1

    while not refused:
        await asyncio.gather(*(retry() for _ in range(TOGETHER)))
    refused = 0
    await meter.read(1)
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        due = min(TOGETHER, int(now * per_s) - refused)
        await asyncio.gather(*(retry() for _ in range(due)))
        await asyncio.sleep(0.001)
    found = await meter.read(refused)
    found["per_s"] = refused / (time.monotonic() - began)
    if found["per_s"] < 0.9 * per_s:
        found["share"] *= per_s / found["per_s"]
    await admission.drain(20.0)
    return found


async def main() -> None:
    async with await TenantStore.connect(sys.argv[1], timeout_s=5.0) as store:
        admission, meter = Admission(store), Meter(store)
        while order := (await asyncio.to_thread(sys.stdin.readline)).split():
            answer: dict[str, Any] = {}
            if order[0] == "warm":
                await warm(admission, float(order[1]))
            elif order[0] == "requests":
                answer = await requests(admission, meter, int(order[1]))
            else:
                answer = await storm(admission, meter, float(order[1]), int(order[2]))
            print(json.dumps(answer), flush=True)
        await admission.aclose()


if __name__ == "__main__":
    asyncio.run(main())
