"""A million tenants and 100,000 requests a second, by a model: what breaks first, how many primaries, what it costs.

What one request and one tenant cost the store is measured here, on a Valkey of its own: processor time, network bytes
and memory. The rest is arithmetic, printed as a table.

    python -m benchmarks.metering_model           # half a minute
    python -m benchmarks.metering_model --tenants 10000 --rate 500 --events-hours 24
"""

from __future__ import annotations

import argparse
import asyncio
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.metering_cost_side import MANY, TOGETHER, tenant
from tenants.admin import installation
from tenants.admin.admin import TenantAdmin
from tenants.live.entitlements import Entitlements
from tenants.metering.admission import Admission
from tenants.metering.settlement import SHORT_TOMBSTONE_S
from tenants.records import keyspace
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore

SAMPLE = 400
"""Tenants that are made to be measured."""
PER_TENANT = 16
CORE_SHARE = 0.6
"""Of a primary's one core: above it, a burst waits."""
MEMORY_SHARE = 0.6
"""Of a primary's memory: the rest is for a fork, buffers and a burst."""
USAGE_DAYS = 400


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured: microseconds of the store's thread and of the gateway's a request, and bytes."""

    busy_store_us: float
    many_store_us: float
    many_gateway_us: float
    network_bytes: float
    record_bytes: float
    usage_bytes: float
    minute_bytes: float
    tombstone_bytes: float
    event_bytes: float


class Spent:
    """What the server and this process have spent since the last question."""

    def __init__(self, store: TenantStore) -> None:
        self._store, self._last = store, (0.0, 0.0, 0.0)

    async def read(self, requests: int) -> tuple[float, float, float]:
        """Microseconds of the server, of this process, and bytes on the network, a request."""
        info = await self._store.execute("INFO", "everything")
        server = info["used_cpu_user"] + info["used_cpu_sys"]
        network = float(info["total_net_input_bytes"] + info["total_net_output_bytes"])
        now = (server * 1e6, time.process_time() * 1e6, network)
        spent = tuple((new - old) / requests for new, old in zip(now, self._last, strict=True))
        self._last = now
        return spent[0], spent[1], spent[2]


async def serve(admission: Admission, owns: Sequence[Entitlements], rounds: int) -> int:
    """So many rounds of requests, `TOGETHER` at a time, settled; their number."""
    for number in range(rounds):
        chosen = [owns[(number * TOGETHER + i) % len(owns)] for i in range(TOGETHER)]
        leases = await asyncio.gather(*(admission.admit(own, model="m", tokens=100).__aenter__() for own in chosen))
        for lease in leases:
            lease.settle(tokens_in=10, tokens_out=20)
            await lease.__aexit__(None, None, None)
    await admission.drain(60.0)
    return rounds * TOGETHER


async def memory(store: TenantStore, *keys: str) -> int:
    """Bytes of keys together, all of each."""
    return sum(size or 0 for size in await store.pipeline([("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys]))


async def used(store: TenantStore) -> int:
    """Bytes of all data."""
    return int((await store.execute("INFO", "memory"))["used_memory_dataset"])


async def measure(store: TenantStore) -> Costs:
    """Make a few hundred tenants and send them requests."""
    await installation.mark(store)
    admin = TenantAdmin(store)
    await admin.create_tier(
        "gold", {"utility": "1.0", "rpm": "600", "tpm": "100000", "quota_requests_month": "1000000"}
    )
    before = await used(store)
    for number in range(SAMPLE):
        await admin.create_tenant(f"tenant-{number:08}", tier="gold", fields={"name": f"Tenant {number}"})
        await admin.create_key(f"tenant-{number:08}")
    record_bytes = (await used(store) - before) / SAMPLE

    admission, spent = Admission(store), Spent(store)
    owns, busy = [tenant(f"tenant-{number:08}", MANY) for number in range(SAMPLE)], [tenant("busy", MANY)]
    await serve(admission, [*owns, *busy], 2 * SAMPLE // TOGETHER)
    rounds = SAMPLE * PER_TENANT // TOGETHER
    await spent.read(1)
    many = await spent.read(await serve(admission, owns, rounds))
    busiest = await spent.read(await serve(admission, busy, rounds))
    await admission.aclose()

    name, day = owns[0].tenant, time.strftime("%Y-%m-%d", time.gmtime())
    requests = [key async for key in store.scan(f"{keyspace.request(name)}:")]
    stream = keyspace.events(busy[0].tenant)
    return Costs(
        busy_store_us=busiest[0],
        many_store_us=many[0],
        many_gateway_us=many[1],
        network_bytes=many[2],
        record_bytes=record_bytes,
        usage_bytes=await memory(store, keyspace.usage_period(name, day), keyspace.sold(name, day)),
        minute_bytes=await memory(store, *(f"{keyspace.window(name)}:{c}" for c in ("requests", "tokens"))),
        tombstone_bytes=await memory(store, *requests) / len(requests),
        event_bytes=await memory(store, stream) / int(await store.execute("XLEN", stream)),
    )


def table(costs: Costs, options: argparse.Namespace) -> str:
    """Each resource: what it takes in all, and how many primaries that is; what breaks first stands first."""
    rate, tenants, gib = options.rate, options.tenants, 2**30
    room = options.memory_gib * gib * MEMORY_SHARE
    cores = rate * costs.many_store_us / 1e6
    memories = {
        f"events of {options.events_hours:g} h, until an exporter has them": rate
        * options.events_hours
        * 3600
        * costs.event_bytes,
        f"tombstones of {SHORT_TOMBSTONE_S // 3600} h": rate * SHORT_TOMBSTONE_S * costs.tombstone_bytes,
        f"usage of {USAGE_DAYS} days, used on {options.days_used:g} of them": tenants
        * options.days_used
        * costs.usage_bytes,
        "records, with what the audit knows of them": tenants * costs.record_bytes,
        f"minutes of the {options.active:.0%} of tenants that are busy": tenants * options.active * costs.minute_bytes,
    }
    rows = [("processor: admission and settlement", f"{cores:.1f} cores", cores / CORE_SHARE)]
    rows += [(f"memory: {name}", f"{size / gib:,.1f} GiB", size / room) for name, size in memories.items()]
    rows.append(
        ("network", f"{rate * costs.network_bytes * 8 / 1e9:.2f} Gbit/s", rate * costs.network_bytes * 8 / 1e10 / 0.6)
    )
    together = sum(memories.values()) / room
    needed = max(math.ceil(together), math.ceil(cores / CORE_SHARE))
    lines = ["| resource | in all | primaries |", "|---|---|---|"]
    lines += [f"| {name} | {size} | {count:.1f} |" for name, size, count in sorted(rows, key=lambda row: -row[2])]
    lines.append(f"| memory together | {sum(memories.values()) / gib:,.1f} GiB | {together:.1f} |")
    gateway = rate * costs.many_gateway_us / 1e6
    lines.append(f"| gateways' processors, for metering alone | {gateway:.1f} cores | |")
    most = 1e6 / costs.busy_store_us * CORE_SHARE
    price = needed * options.primary_per_hour / (rate * 3600) * 1e6
    return "\n".join(
        [
            *lines,
            "",
            f"{needed} primaries of {options.memory_gib} GiB; of {options.primary_per_hour:g} an hour each, a million",
            f"requests cost {price:.4f}. One tenant lives on one primary: it gets {most:,.0f} requests/s at the most.",
        ]
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tenants", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=100_000, help="requests a second, of all tenants")
    parser.add_argument("--active", type=float, default=0.1, help="part of the tenants that sends anything in a minute")
    parser.add_argument("--days-used", type=float, default=40, help=f"days of {USAGE_DAYS} on which a tenant is active")
    parser.add_argument("--events-hours", type=float, default=1, help="how long events stay in the store")
    parser.add_argument("--memory-gib", type=int, default=64, help="memory of a primary")
    parser.add_argument("--primary-per-hour", type=float, default=0.5, help="price of a primary with its replica")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder)) as server:
        async with await TenantStore.connect(server.url, timeout_s=5.0) as store:
            costs = await measure(store)
    print(
        f"a request costs the store {costs.many_store_us:.0f} us (of a busy tenant {costs.busy_store_us:.0f} us), the "
        f"gateway {costs.many_gateway_us:.0f} us, {costs.network_bytes:.0f} bytes of network, an event of "
        f"{costs.event_bytes:.0f} bytes and a tombstone of {costs.tombstone_bytes:.0f}; a tenant's records take "
        f"{costs.record_bytes:.0f} bytes, a day of its usage {costs.usage_bytes:.0f}, its minutes "
        f"{costs.minute_bytes:.0f}\n"
    )
    print(table(costs, options))


if __name__ == "__main__":
    asyncio.run(main())
