"""The gateway's deployment: the service with its store, its models behind Ray, and its HTTP."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.config import AppArgs
from deployments.environment import Access
from deployments.gateway.api.admin.app import build_admin
from deployments.gateway.api.api import build_api
from deployments.gateway.api.batch_lines import asker
from deployments.gateway.batches.runner import BatchRunner
from deployments.gateway.receipts import Receipts
from deployments.gateway.service import Gateway
from deployments.gateway.settings import Settings
from deployments.gateway_settings import OidcArgs
from deployments.serving.fleet import Fleet, applications, in_replica
from tenants.admin.operators import Role
from tenants.live.cache import EntitlementCache
from tenants.metering.admission import Admission
from tenants.metering.webhooks import Alerts


@serve.ingress()
class TenantGateway:
    """Ingress and tenant policy in one deployment.

    Args:
        args: the application's arguments.
        models: a handle for each model of the same application, by id; others are found as they come.
        access: how to find the store.

    Attributes:
        service: what HTTP is a form of.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, args: AppArgs, models: Mapping[str, DeploymentHandle[Any]], access: Access
    ) -> None:
        self.fleet = Fleet(models, applications)
        self.admin_store = await access.for_admin().connect() if args.gateway.admin_api else None
        self.tokens = _tokens(args.gateway.admin_oidc) if self.admin_store is not None else None
        self.store = await access.connect()
        grace = args.store.stale_grace_s
        self.cache = EntitlementCache(self.store, ttl_s=args.store.cache_ttl_s, stale_grace_s=grace)
        await self.cache.start()
        self.admission = Admission(self.store, stale_grace_s=grace, held_dir=args.store.folder / "held")
        await self.admission.start()
        self.alerts = Alerts(self.store, self.admission.settler)
        self.admission.observe = self.alerts.watch.observe
        self.alerts.start()
        self.receipts = await Receipts.start(lambda: access.receipt_secret(self.store))
        self.service = Gateway(Settings(args.gateway), self.fleet, self.cache, self.admission, self.receipts)
        self.service.start()
        self.batches = BatchRunner(self.service, self.store)
        await self.fleet.start()
        _freeze_heap()

    def __serve_build_asgi_app__(self) -> FastAPI:
        admin = None if self.admin_store is None else build_admin(self.admin_store, self.tokens)
        api = build_api(self.service, admin, self.batches)
        self.batches.start(asker(api))
        return api

    def reconfigure(self, user_config: dict[str, Any] | None, rank: object = None) -> None:
        """Called by Serve at the start and at each change of `user_config`; for its `rank` also where there is none."""
        self.service.settings.change(user_config)

    async def __del__(self) -> None:
        """Called by Serve at shutdown: what is not settled yet is."""
        first = ("batches", "fleet", "service", "receipts", "alerts", "admission")
        for part in (*first, "cache", "store", "admin_store", "tokens"):
            if getattr(self, part, None) is not None:
                await getattr(self, part).aclose()


def _tokens(args: OidcArgs | None) -> Any:
    """Who tells whom tokens stand for; None where no issuer is configured. Raises ValueError without its library."""
    if args is None:
        return None
    try:
        from tenants.admin.oidc import Issuer, Tokens
    except ModuleNotFoundError as error:
        raise ValueError(f"gateway.admin_oidc needs {error.name}: pip install 'aim-serve[oidc]'") from None
    roles = {value: Role(role) for value, role in args.roles.items()}
    return Tokens(Issuer(**{**args.model_dump(), "roles": roles, "jwks_url": args.jwks_url or ""}))


def _freeze_heap() -> None:
    """Keep collections from looking at all that was imported: a full one would stop every request for 0.1 s."""
    if in_replica():
        gc.collect()
        gc.freeze()
