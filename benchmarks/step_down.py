"""Stepping down across the edge of a budget: 64 clients, two gateway processes, a store that goes, a gateway that dies.

Each gateway is a whole one over HTTP, before a model that answers at once; clients verify every receipt. Then the store
is killed and started again, and meanwhile one gateway is killed, whose held usage the other takes over. Judged: money
never above the budget, levels and reasons by receipt equal to usage and events, money to the micro-unit, no 429.

    python -m benchmarks.step_down                 # about a minute
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import httpx

from benchmarks.tenancy_support import REPOSITORY, free_port
from tenants.admin import installation
from tenants.admin.admin import TenantAdmin
from tenants.metering.events import read_events
from tenants.metering.settlement import today
from tenants.metering.usage import read_usage
from tenants.records.receipts import HEADER, Signer
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore

CLIENTS = 64
BUDGET = 400_000
PRICES = {"image": "100", "image:*:0.9": "170", "image:*:1.0": "250", "request": "3"}
TENANT = {"when_exhausted": "step(0.9:20%, 0.7)", "budget_month": str(BUDGET), "plan": "p@1", "show_cost": "true"}
Told = Counter[tuple[float, str, int]]
"""By level, reason and cost."""


@dataclass
class Seen:
    """What clients were answered."""

    told: Told = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    stop: bool = False


async def serve(port: int, url: str, folder: str) -> None:
    """One gateway, until it is killed."""
    import uvicorn

    from deployments.config import AppArgs, StoreArgs, Task
    from deployments.contracts.catalog import ModelInfo

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tests.deployments.gateway_support import Scripted, opened

    spec: Any = {"id": "p", "task": "image-classification", "source": "nowhere"}
    gateway = await opened(AppArgs(models=(spec,), store=StoreArgs(redis_url=url, data_dir=folder)))
    models: Any = Scripted(lambda *_: [])
    models.add(ModelInfo(id="p", task=Task.CLASSIFICATION, classes=("cat",), floor=0.1, created=1))
    gateway.service.models = models
    app = gateway.__serve_build_asgi_app__()
    await uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off")).serve()


def start(port: int, url: str, folder: Path) -> subprocess.Popen[bytes]:
    """A gateway's process."""
    command = [sys.executable, "-m", "benchmarks.step_down", "--serve", str(port), "--folder", str(folder)]
    environment = os.environ | {"REDIS_URL": url, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment)


async def client(base: str, key: str, tenant: str, signer: Signer, seen: Seen) -> None:
    """Ask again and again, and believe receipts alone."""
    async with httpx.AsyncClient(base_url=base, headers={"authorization": f"Bearer {key}"}, timeout=60.0) as http:
        while not seen.stop:
            try:
                answer = await http.post("/models/p", content=b"x")
            except httpx.TransportError:
                seen.others["no connection"] += 1
                return
            if answer.status_code != 200:
                seen.others[f"{answer.status_code} {answer.json()['error']['code']}"] += 1
                await asyncio.sleep(0.05)
                continue
            said = signer.verify(answer.headers[HEADER])
            assert (said.tenant, f"{said.level:g}") == (tenant, answer.headers["x-utility"])
            assert said.reason == answer.headers.get("x-utility-reason", "")
            seen.told[said.level, said.reason, int(answer.headers["x-cost"])] += 1
            await asyncio.sleep(random.random() / 50)


async def ready(*ports: int) -> None:
    """Until gateways answer."""
    async with httpx.AsyncClient() as http:
        for port in ports:
            while True:
                try:
                    await http.get(f"http://127.0.0.1:{port}/healthz")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.1)


async def sold(admin: TenantAdmin, tenant: str) -> str:
    """A tenant with the budget; a key of it."""
    await admin.create_tenant(tenant, tier="gold", fields=TENANT)
    return (await admin.create_key(tenant))[0]


async def judged(store: TenantStore, tenant: str, seen: Seen) -> None:
    """What clients were told against usage and events, once all is settled."""
    for _ in range(600):
        (usage,) = await read_usage(store, tenant, today())
        if usage.total["requests"] >= seen.told.total():
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(1.0)
    (usage,) = await read_usage(store, tenant, today())
    day = date.fromisoformat(today())
    events = [event async for event in read_events(store, day, day, [tenant])]
    booked, money, mine, cost = (Counter[str]() for _ in range(4))
    for own in usage.sold:
        booked[own.level] += own.counts["requests"]
        money[own.level] += own.counts["cost"]
    for (level, _, price), count in seen.told.items():
        mine[f"{level:g}"] += count
        cost[f"{level:g}"] += count * price
    more = Counter((e.level, e.reason, e.cost) for e in events) - seen.told
    print(f"  receipts by level: {dict(mine)}, micro-units {dict(cost)}")
    requests, micro = [booked[n] - mine[n] for n in mine], [money[n] - cost[n] for n in mine]
    print(f"  usage less receipts: {requests}, micro-units {micro}")
    print(f"  events that no client was told of: {dict(more)}; ids twice: {len(events) - len({e.id for e in events})}")
    whole = usage.total["cost"] == sum(event.cost for event in events) == sum(money.values())
    print(
        f"  spent {usage.total['cost']} of {BUDGET}, events and usage agree: {whole}; refused {usage.total['rejected']}"
    )
    print(f"  other answers: {dict(seen.others)}", flush=True)


def clients(
    ports: list[int], key: str, tenant: str, signer: Signer, seen: Seen, count: int
) -> list[asyncio.Task[None]]:
    """Clients that begin now, as many at each gateway."""
    bases = [f"http://127.0.0.1:{port}" for port in ports]
    return [asyncio.create_task(client(bases[at % len(bases)], key, tenant, signer, seen)) for at in range(count)]


async def ended(seen: Seen, tasks: list[asyncio.Task[None]], least: int = 500) -> None:
    """Go on until so many answers were of the last step, and then stop."""
    while sum(count for (level, *_), count in seen.told.items() if level == 0.7) < least:
        await asyncio.sleep(0.05)
    seen.stop = True
    await asyncio.gather(*tasks)


async def calm(admin: TenantAdmin, store: TenantStore, signer: Signer, ports: list[int]) -> None:
    """Nothing fails."""
    print("across the edge of a budget:")
    seen, key = Seen(), await sold(admin, "calm")
    await ended(seen, clients(ports, key, "calm", signer, seen, CLIENTS))
    await judged(store, "calm", seen)


async def outage(
    admin: TenantAdmin,
    store: TenantStore,
    signer: Signer,
    ports: list[int],
    valkey: EmbeddedValkey,
    gateways: list[subprocess.Popen[bytes]],
    folder: Path,
) -> None:
    """The store is killed; one gateway too, while it is away and clients ask; both come back."""
    print("with an outage of the store, in which a gateway is killed:")
    seen, key = Seen(), await sold(admin, "outage")
    tasks = clients(ports, key, "outage", signer, seen, CLIENTS)
    while seen.told.total() < 400:
        await asyncio.sleep(0.05)
    await asyncio.sleep(2.0)  # the server writes to disk once a second, and must not lose what it had booked
    valkey._server._process.kill()
    await asyncio.to_thread(valkey._server._process.wait)
    await asyncio.sleep(3.0)
    gateways[0].kill()
    gateways[0].wait()
    await asyncio.to_thread(valkey.start)
    gateways[0] = start(ports[0], valkey.url, folder)
    await ready(*ports)
    tasks += clients(ports[:1], key, "outage", signer, seen, CLIENTS // 2)
    await ended(seen, tasks)
    await judged(store, "outage", seen)


async def main(folder: Path) -> None:
    """Both loads."""
    valkey = await asyncio.to_thread(EmbeddedValkey, folder / "store")
    ports = [free_port(), free_port()]
    async with await TenantStore.connect(valkey.url, timeout_s=5.0) as store:
        admin = TenantAdmin(store, who="benchmark")
        await installation.create_secrets(store)
        signer = Signer((await installation.receipt_secret(store)).encode())
        await admin.create_plan("p@1", PRICES)
        await admin.create_tier("gold", {"utility": "1.0"})
        gateways = [start(port, valkey.url, folder) for port in ports]
        try:
            await ready(*ports)
            await calm(admin, store, signer, ports)
            await outage(admin, store, signer, ports, valkey, gateways, folder)
        finally:
            for gateway in gateways:
                gateway.kill()
                gateway.wait()
            valkey.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve, os.environ["REDIS_URL"], options.folder))
    else:
        with tempfile.TemporaryDirectory() as own:
            asyncio.run(main(Path(own)))
