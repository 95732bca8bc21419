"""A gateway of no model, its store, and an HTTP client of it: shared by the tests of what a gateway answers."""

from __future__ import annotations

import warnings

import httpx

from deployments.config import AppArgs
from tenants.admin import TenantAdmin
from tenants.embedded import EmbeddedValkey

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from deployments.gateway.service import TenantGateway
    from deployments.serving.store import StoreAccess


class LocalGateway(TenantGateway):
    """Outside Serve nobody awaits its destructor; the fixture calls it."""

    def __del__(self) -> None:  # type: ignore[override]
        pass


class Running:
    """A gateway of no model, its store, and an HTTP client of it."""

    def __init__(self, valkey: EmbeddedValkey, gateway: TenantGateway, admin: TenantAdmin) -> None:
        self.valkey, self.gateway, self.admin = valkey, gateway, admin
        self.app = gateway.__serve_build_asgi_app__()
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://gateway")

    async def key(self, **limits: str) -> dict[str, str]:
        """Headers with a new key of the tenant."""
        return {"authorization": f"Bearer {(await self.admin.create_key('acme', limits=limits))[0]}"}


async def opened(args: AppArgs) -> LocalGateway:
    """A gateway of no model, as a replica makes it."""
    gateway = LocalGateway.__new__(LocalGateway)
    await TenantGateway.__init__(gateway, args, {}, StoreAccess(None, args.store))
    return gateway
