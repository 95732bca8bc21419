"""A thousand mixed text requests over HTTP, each compared with itself asked alone; then 200 clients that leave midway.

Lengths, tiers, chat and completion, streamed or not, seeded or greedy; one in ten is cancelled, one in ten is bad.
Reports answers that differ (and for greedy ones how near the two highest logits are where they part), requests without
an answer, memory of the replica and the gateway, and after each part leases, reserved tokens and usage in the store.

    python -m benchmarks.text_soak
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.tenancy_support import Server, serving
from benchmarks.text_requests import BAD, TIERS, Wish, bad_request, wishes
from benchmarks.text_support import TEXT_MODEL, Subject, load_engine, text_spec, tree
from benchmarks.text_ties import margin_where_parted
from tenants.metering.usage import read_days
from tenants.records import keyspace

HUNG_S = 150.0
"""Longer than the gateway's own deadline."""
CLIENTS = 24


@dataclass
class Tally:
    """What came of the requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    differing: list[tuple[Wish, str]] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)


async def ask(client: httpx.AsyncClient, wish: Wish, keys: dict[str, str], stream: bool) -> str:
    """The text of an answer; for another status than 200, that and the error."""
    body = wish.body() | {"stream": stream}
    headers = {"authorization": f"Bearer {keys[wish.tier]}"}
    if not stream:
        response = await client.post(wish.path, json=body, headers=headers)
        return (
            wish.text_of(response.json()) if response.status_code == 200 else f"{response.status_code} {response.text}"
        )
    parts: list[str] = []
    async with client.stream("POST", wish.path, json=body, headers=headers) as response:
        if response.status_code != 200:
            return f"{response.status_code} {(await response.aread()).decode()}"
        async for line in response.aiter_lines():
            parts += wish.pieces_of(line)
    return "".join(parts)


async def leave(client: httpx.AsyncClient, wish: Wish, keys: dict[str, str], after: int) -> int:
    """Stream an answer and disconnect after so many pieces, or before the first; how many came."""
    seen, headers = 0, {"authorization": f"Bearer {keys[wish.tier]}"}
    async with client.stream("POST", wish.path, json=wish.body() | {"stream": True}, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        if after == 0:
            return 0
        async for line in response.aiter_lines():
            seen += len(wish.pieces_of(line))
            if seen >= after:
                break
    return seen


async def mixed(server: Server, keys: dict[str, str], alone: dict[Wish, str], count: int, rng: random.Random) -> Tally:
    """The mixed requests, so many clients at once."""
    tally, queue = Tally(), list(range(count))
    pool = list(alone)

    async def one(client: httpx.AsyncClient) -> None:
        chance, wish = rng.random(), rng.choice(pool)
        if chance < 0.1:
            name, request = bad_request(rng, keys)
            response = await client.send(client.build_request(**request))
            right = response.status_code == BAD[name].status and "error" in response.json()
            tally.outcomes["refused as it should be" if right else f"bad request {name}: {response.status_code}"] += 1
        elif chance < 0.2:
            longer = wish.longer()
            await leave(client, longer, keys, rng.randrange(4))
            tally.outcomes["cancelled"] += 1
        else:
            stream = rng.random() < 0.5
            text = await ask(client, wish, keys, stream)
            same = text == alone[wish]
            tally.outcomes["the same" if same else "different"] += 1
            if not same:
                tally.differing.append((wish, text))

    async def client_loop() -> None:
        async with httpx.AsyncClient(base_url=server.base_url, timeout=HUNG_S) as client:
            while queue:
                queue.pop()
                try:
                    await one(client)
                except (httpx.HTTPError, RuntimeError) as error:
                    tally.outcomes[f"no answer: {type(error).__name__}"] += 1

    watch = asyncio.create_task(sample_memory(server, tally))
    await asyncio.gather(*(client_loop() for _ in range(CLIENTS)))
    watch.cancel()
    tally.memory.append(memory(server))
    return tally


async def sample_memory(server: Server, tally: Tally) -> None:
    """Memory every two seconds."""
    while True:
        tally.memory.append(memory(server))
        await asyncio.sleep(2.0)


def memory(server: Server) -> tuple[int, int]:
    """Resident MiB of the model's replica and of the gateway."""
    sizes = {"TextReplica": 0, "TenantGateway": 0, TEXT_MODEL: 0}
    for pid in tree(server.pid):
        try:
            name = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        for kind in sizes:
            if name.startswith("ray::ServeReplica") and kind in name:
                sizes[kind] += pages * 4096 // 2**20
    return max(sizes["TextReplica"], sizes[TEXT_MODEL]), sizes["TenantGateway"]


async def left_over(server: Server, tenants: list[str]) -> str:
    """What the store still holds of requests that have ended, and whether the model still works, once all is quiet."""
    store = server.admin._store
    for _ in range(100):
        leases = sum([int(await store.execute("ZCARD", keyspace.running(tenant))) for tenant in tenants])
        reserved = sum([(await read_days(store, tenant, 1))[0].total["tokens_reserved"] for tenant in tenants])
        if leases == reserved == 0:
            break
        await asyncio.sleep(0.1)
    processes = Subject(ask=None, root=server.pid)  # type: ignore[arg-type]
    used, started = processes.cpu_seconds(), time.perf_counter()
    await asyncio.sleep(5.0)
    load = (processes.cpu_seconds() - used) / (time.perf_counter() - started)
    return f"leases {leases}, tokens reserved {reserved}; processor in the 5 s after: {load:.2f} of one core"


async def disconnects(server: Server, count: int, rng: random.Random) -> None:
    """Clients that all stream at once and leave after one to five pieces, one in ten before the first."""
    tenant = "leaver"
    await server.admin.create_tenant(tenant, tier=TIERS[0][0])
    keys = {TIERS[0][0]: (await server.admin.create_key(tenant))[0]}
    wish = Wish(TIERS[0][0], "chat", "Write a long text about the sea.", 64)
    async with httpx.AsyncClient(
        base_url=server.base_url, timeout=600.0, limits=httpx.Limits(max_connections=None)
    ) as client:
        response = await client.post(wish.path, json=wish.body() | {"max_tokens": 1}, headers=bearer(keys[wish.tier]))
        prompt = response.json()["usage"]["prompt_tokens"]
        seen = await asyncio.gather(*(leave(client, wish, keys, rng.choice((0, *range(1, 6)))) for _ in range(count)))
    print(f"after {count} clients left midway: {await left_over(server, [tenant])}")
    total = (await read_days(server.admin._store, tenant, 1))[0].total
    print(
        f"usage: {total['requests'] - 1} requests, {total['tokens_in'] - prompt} prompt tokens (of {count * prompt}),"
        f" {total['tokens_out'] - 1} tokens of answers; clients saw {sum(seen)} pieces, asked for {count * 64} tokens"
    )


def bearer(key: str) -> dict[str, str]:
    """The header that a key goes into."""
    return {"authorization": f"Bearer {key}"}


async def explain(differing: list[tuple[Wish, str]], alone: dict[Wish, str], store_url: str) -> None:
    """Print, for answers that differ, how near the two highest logits are at the first token that differs."""
    engine = await load_engine(text_spec(max_batch_size=8), store_url)
    for wish, text in differing:
        found = margin_where_parted(engine, wish, alone[wish], text)
        print(f"  {wish}: {found}; alone {alone[wish]!r}, beside others {text!r}")
    engine.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--distinct", type=int, default=60, help="different good requests among them")
    parser.add_argument("--leavers", type=int, default=200, help="clients that disconnect midway")
    parser.add_argument("--seats", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps the calibration between runs")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        seats, threads = options.seats, options.threads
        async with serving(folder, gateways=1, model=TEXT_MODEL, max_batch_size=seats, threads=threads) as server:
            keys = await tenants_of_each_tier(server)
            async with httpx.AsyncClient(base_url=server.base_url, timeout=HUNG_S) as client:
                alone = {wish: await ask(client, wish, keys, False) for wish in wishes(rng, options.distinct)}
            assert not any(text.startswith(("4", "5")) for text in alone.values()), alone
            tally = await mixed(server, keys, alone, options.requests, rng)
            for outcome, number in tally.outcomes.most_common():
                print(f"{number} {outcome}")
            replica, gateway = ([sizes[place] for sizes in tally.memory] for place in (0, 1))
            for name, sizes in (("replica", replica), ("gateway", gateway)):
                print(f"MiB of the {name}: first {sizes[0]}, middle {sizes[len(sizes) // 2]}, last {sizes[-1]}")
            print(f"after the mixed requests: {await left_over(server, list(keys))}")
            await disconnects(server, options.leavers, rng)
            if tally.differing:
                await explain(tally.differing, alone, server.valkey.url)


async def tenants_of_each_tier(server: Server) -> dict[str, str]:
    """A tenant a tier, named like it; their keys."""
    keys = {}
    for name, level in TIERS:
        await server.admin.create_tier(name, {"utility": str(level), "concurrency": "1000"})
        await server.admin.create_tenant(name, tier=name)
        keys[name] = (await server.admin.create_key(name))[0]
    return keys


if __name__ == "__main__":
    asyncio.run(main())
