"""What benchmarks against a running application share: its store, tenants of their own, and raw requests."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from benchmarks.tenancy_support import REPOSITORY
from tenants.admin.admin import TenantAdmin
from tenants.admin.seed import read_env
from tenants.metering.usage import read_days
from tenants.records import keyspace
from tenants.store.store import TenantStore

CLASSIFIER, SEGMENTER, TEXT = "resnet18-cifar10", "segformer-b0-camvid", "smollm2-135m-instruct"
DISCOVERY = Path("/tmp/ray/prom_metrics_service_discovery.json")
"""Where Ray says what Prometheus is to read."""


@dataclass
class Running:
    """A running application, as its folder's `demo.env` names it."""

    base_url: str
    store: TenantStore
    admin: TenantAdmin
    made: list[str] = field(default_factory=list)

    async def tenant(self, tier: str, fields: dict[str, str]) -> tuple[str, str]:
        """A new tenant of a tier of this run's own: its id and a key."""
        tenant, tier = f"bench-{tier}-{secrets.token_hex(4)}", f"bench-{tier}"
        try:
            await self.admin.set_tier(tier, fields)
        except Exception:
            await self.admin.create_tier(tier, fields)
        await self.admin.create_tenant(tenant, tier=tier)
        self.made.append(tenant)
        return tenant, (await self.admin.create_key(tenant))[0]

    async def leases(self, tenant: str) -> int:
        """Requests of a tenant that are under way."""
        return int(await self.store.execute("ZCARD", keyspace.leases(tenant)))

    async def usage(self, tenant: str) -> dict[str, int]:
        """What it has used today, in all."""
        return dict((await read_days(self.store, tenant, 1))[0].total)


@asynccontextmanager
async def running(env: Path) -> AsyncIterator[Running]:
    """The application whose `demo.env` and `admin.env` these are; its tenants of this run are deleted after it."""
    named = read_env(env) | read_env(env.with_name("admin.env"))
    async with await TenantStore.connect(named["OWNER_REDIS_URL"], timeout_s=5.0) as store:
        found = Running(named["BASE_URL"], store, TenantAdmin(store, who="benchmark"))
        try:
            yield found
        finally:
            for tenant in found.made:
                await found.admin.delete_tenant(tenant)


async def metric(name: str, **tags: str) -> float:
    """The sum of a metric over all processes of the application, as Ray last exported it."""
    total = 0.0
    async with httpx.AsyncClient(timeout=10.0) as client:
        for target in [target for group in json.loads(DISCOVERY.read_text()) for target in group["targets"]]:
            for line in (await client.get(f"http://{target}/metrics")).text.splitlines():
                if line.startswith(f"ray_{name}{{") and all(f'{tag}="{value}"' in line for tag, value in tags.items()):
                    total += float(re.split(r"\s+", line)[-1])
    return total


async def send_apart(
    base_url: str, path: str, key: str, body: bytes, kind: str, apart_s: float, *, declared: int | None = None
) -> asyncio.StreamWriter:
    """A request whose body comes a while after its headers, as over a network; the connection, nothing read yet.

    Args:
        kind: content type.
        declared: bytes that the headers say; None: as many as there are.
    """
    address = urlsplit(base_url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    head = f"POST {path} HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Bearer {key}\r\n"
    writer.write(f"{head}content-type: {kind}\r\ncontent-length: {declared or len(body)}\r\n\r\n".encode())
    await writer.drain()
    await asyncio.sleep(apart_s)
    writer.write(body)
    await writer.drain()
    return writer


def picture(name: str) -> bytes:
    """One of the examples' pictures."""
    return (REPOSITORY / "examples" / name).read_bytes()
