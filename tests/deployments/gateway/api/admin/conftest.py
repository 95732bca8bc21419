"""Administration over HTTP on a store of its own, and people of every role."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from deployments.gateway.api.admin.app import PREFIX, build_admin
from tenants.admin import installation
from tenants.admin.admin import TenantAdmin
from tenants.admin.operators import Operators, Role
from tenants.changes.audit import AuditLog
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore


@dataclass
class Office:
    """The API, by whose key it is asked."""

    store: TenantStore
    admin: TenantAdmin
    people: dict[Role, httpx.AsyncClient]
    nobody: httpx.AsyncClient

    @property
    def owner(self) -> httpx.AsyncClient:
        return self.people[Role.OWNER]

    async def version(self, path: str) -> dict[str, str]:
        """The header that a change of what is there now needs."""
        answer = await self.owner.get(path)
        assert answer.status_code == 200, answer.text
        return {"If-Match": answer.headers["ETag"]}

    async def patch(self, path: str, body: Any) -> httpx.Response:
        return await self.owner.patch(path, json=body, headers=await self.version(path))


def client(app: FastAPI, key: str = "") -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://gateway{PREFIX}", headers=headers)


@pytest_asyncio.fixture(scope="session")
async def admin_store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TenantStore]:
    """As the store's user admin, who may do no more than its rights say."""
    with EmbeddedValkey(Path(tmp_path_factory.mktemp("office"))) as server:
        async with await TenantStore.connect(server.url, timeout_s=5.0) as owner:
            await installation.create_secrets(owner)
            async with await TenantStore.connect(server.url_of("admin"), timeout_s=5.0) as store:
                yield store
            log = str(await owner.execute("ACL", "LOG"))
            assert "admin" not in log, log


@pytest_asyncio.fixture
async def office(admin_store: TenantStore) -> AsyncIterator[Office]:
    kinds = ("plan:", "project:", "tier:", "tenant:", "apikey:", "adminkey:", "known:", "index", "usage:", "events:")
    for prefix in kinds:
        async for key in admin_store.scan(prefix):
            await admin_store.execute("DEL", key)
    app = FastAPI()
    app.mount(PREFIX, build_admin(admin_store))
    operators = Operators(admin_store, AuditLog(admin_store, "tester"))
    keys = {role: (await operators.create(role, role))[0] for role in Role}
    opened = Office(
        admin_store,
        TenantAdmin(admin_store, who="tester"),
        {role: client(app, key) for role, key in keys.items()},
        client(app),
    )
    yield opened
    for own in (*opened.people.values(), opened.nobody):
        await own.aclose()
