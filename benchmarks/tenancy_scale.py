"""10,000 tenants and 100,000 keys against ten tenants with a key each: a gateway's speed and memory, and the command's.

Each side has a Valkey of its own; slices of the same work alternate between them in one process. The work is what a
gateway does for a request around the model: authentication, entitlements, admission, settlement. On the large side
each request is of a key drawn at random from all of them, the worst there is: nobody's traffic is that even.

    python -m benchmarks.tenancy_scale            # about five minutes
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tenants.live.cache import EntitlementCache
from tenants.metering.admission import Admission
from tenants.records import completeness, keyspace
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import READ_BATCH, TenantStore

WORKERS = 16
SLICE_S = 1.0
COMMANDS = (
    ("list", "--limit", "100"),
    ("list", "--after", "t4999"),
    ("show", "t1234"),
    ("key", "list", "t1234"),
    ("key", "create", "t1234"),
    ("key", "revoke", "sk-t77-…0003"),
    ("usage", "t1234"),
    ("check",),
    ("export",),
)


@dataclass
class Side:
    """One store, a gateway's view of it, and what was measured."""

    store: TenantStore
    cache: EntitlementCache
    admission: Admission
    keys: list[str]
    rates: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    requests: int = 0

    async def request(self, key: str) -> None:
        """All of a request but the model."""
        async with self.admission.admit(await self.cache.authenticate(key), model="m", images=1):
            pass
        self.requests += 1

    async def run(self, seconds: float, rng: random.Random) -> None:
        """A slice: some workers that ask without a pause."""
        began, before = time.perf_counter(), self.requests

        async def worker() -> None:
            while time.perf_counter() - began < seconds:
                start = time.perf_counter()
                await self.request(rng.choice(self.keys))
                self.times.append(time.perf_counter() - start)

        await asyncio.gather(*(worker() for _ in range(WORKERS)))
        self.rates.append((self.requests - before) / (time.perf_counter() - began))
        await self.admission.drain(20.0)


async def fill(store: TenantStore, tenants: int, keys: int) -> list[str]:
    """Write records as the `tenants` command leaves them; the secrets of the keys."""
    tier = {"utility": "0.9", "rpm": "100000", "tpm": "10000000"}
    commands = [_record(keyspace.tier("gold"), tier)]
    secrets = []
    for i in range(tenants):
        own = {"tier": "gold", "name": f"Tenant {i}", "status": "active", "rpm": "90000"}
        commands.append(_record(keyspace.tenant(f"t{i}"), own))
        for j in range(keys):
            secrets.append(secret := keyspace.new_secret(f"t{i}"))
            fields = {"tenant": f"t{i}", "label": "ci", "prefix": f"sk-t{i}-…{j:04d}", "status": "active"}
            commands.append(
                _record(keyspace.apikey(keyspace.key_digest(secret)), fields | {"created_at": "2026-01-01T00:00:00Z"})
            )
    for start in range(0, len(commands), READ_BATCH):
        await store.pipeline(commands[start : start + READ_BATCH])
    return secrets


def _record(key: str, fields: dict[str, str]) -> tuple[str, ...]:
    fields = fields | {completeness.FIELD: completeness.over(fields)}
    return ("HSET", key, *(word for pair in fields.items() for word in pair))


async def counters(store: TenantStore) -> dict[str, int]:
    """Calls by command, by the server's own statistics."""
    stats = await store.execute("INFO", "commandstats")
    return {name.removeprefix("cmdstat_"): int(values["calls"]) for name, values in stats.items()}


def resident_mb() -> float:
    """This process's memory now, in MB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def open_side(stack: AsyncExitStack, url: str, tenants: int, keys: int) -> Side:
    """Fill a store and open a gateway's view of it."""
    store = await stack.enter_async_context(await TenantStore.connect(url, timeout_s=5.0))
    secrets = await fill(store, tenants, keys)
    cache, admission = EntitlementCache(store), Admission(store)
    await cache.start()
    stack.push_async_callback(cache.aclose)
    stack.push_async_callback(admission.aclose)
    return Side(store, cache, admission, secrets)


async def warm(side: Side) -> None:
    """Ask once for every key."""
    for start in range(0, len(side.keys), WORKERS):
        await asyncio.gather(*(side.cache.authenticate(key) for key in side.keys[start : start + WORKERS]))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--keys", type=int, default=10, help="keys of each tenant")
    parser.add_argument("--slices", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with EmbeddedValkey(Path(folder) / "small") as ten, EmbeddedValkey(Path(folder) / "large") as many:
            async with AsyncExitStack() as stack:
                small = await open_side(stack, ten.url, 10, 1)
                large = await open_side(stack, many.url, options.tenants, options.keys)
                await gateway(small, large, options.slices)
                await edits(large)
                await bounded(large)
            await command(many.url)


async def gateway(small: Side, large: Side, slices: int) -> None:
    """Alternate slices of both sides."""
    await warm(small)
    before, began = resident_mb(), time.perf_counter()
    await warm(large)
    took = time.perf_counter() - began
    print(f"{len(large.keys)} keys known after {took:.1f} s; {resident_mb() - before:.0f} MB more than with ten")
    rng = random.Random(5)
    for side in (small, large):  # scripts and code paths
        await side.run(SLICE_S, rng)
        side.rates.clear()
        side.times.clear()
    marks = [await counters(side.store) for side in (small, large)]
    starts = [small.requests, large.requests]
    for _ in range(slices):
        for side in (small, large):
            await side.run(SLICE_S, rng)
    ratios = [b / a for a, b in zip(small.rates, large.rates, strict=True)]
    print(f"ratio of requests/s, large to small, median of {slices} pairs: {statistics.median(ratios):.3f}")
    for name, side, mark, start in zip(("ten", "many"), (small, large), marks, starts, strict=True):
        after = await counters(side.store)
        done = side.requests - start
        reads = (after.get("hgetall", 0) - mark.get("hgetall", 0)) / done
        scripts = sum(after.get(n, 0) - mark.get(n, 0) for n in ("evalsha", "eval")) / done
        print(
            f"  {name}: {statistics.median(side.rates):.0f} requests/s, {_ms(side.times)} ms; a request costs"
            f" {scripts:.2f} scripts and {reads:.3f} entitlement reads"
        )


def _ms(times: Sequence[float]) -> str:
    ordered = sorted(times)
    return " / ".join(f"{ordered[int(share * (len(ordered) - 1))] * 1000:.2f}" for share in (0.5, 0.99, 1.0))


async def edits(large: Side) -> None:
    """How long the event loop stands still when the tier of every tenant is edited, and when the feed comes back."""
    for name, act in (
        ("an edit of everyone's tier", lambda: large.cache.changed(keyspace.tier("gold"))),
        ("a feed that is lost and comes back", lambda: (large.cache.lost(time.monotonic()), large.cache.resumed())),
    ):
        began = time.perf_counter()
        act()
        print(f"{name} holds up the event loop for {(time.perf_counter() - began) * 1000:.2f} ms")


async def bounded(large: Side) -> None:
    """A cache that is smaller than what is asked of it."""
    small = EntitlementCache(large.store, capacity=1_000)
    for key in large.keys[:5_000]:
        await small.authenticate(key)
    print(
        f"a cache of 1,000 after 5,000 keys holds {len(small._entries)} entries, {len(small._sources)} records' names"
    )
    await small.aclose()


async def command(url: str) -> None:
    """The `tenants` command at this size, and that no client ever sent KEYS."""
    environment = os.environ | {"REDIS_URL": url}
    for words in COMMANDS:
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tenants.command.app", *words), env=environment, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        print(
            f"tenants {' '.join(words)}: {time.perf_counter() - began:.2f} s, status {process.returncode},"
            f" {len(output.splitlines())} lines"
        )
    async with await TenantStore.connect(url, timeout_s=5.0) as store:
        seen = await counters(store)
    print(f"KEYS was called {seen.get('keys', 0)} times; the commands of this run: {' '.join(sorted(seen))}")


if __name__ == "__main__":
    asyncio.run(main())
