"""TenantGateway: the ingress and tenant-policy deployment in one. A request's way through it is `admit`, below."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.config import AppArgs
from deployments.contracts.catalog import ModelInfo
from deployments.gateway.api.api import build_api
from deployments.gateway.api.intake import Intake
from deployments.gateway.api.middleware import Receipt
from deployments.gateway.receipts import Receipts
from deployments.gateway.settings import Settings
from deployments.gateway.ticket import Cost, Ticket
from deployments.serving.calls import call_replica
from deployments.serving.fleet import Fleet, applications, in_replica
from deployments.serving.store import StoreAccess
from policies.errors import LimitExceeded, NotEntitled, NotFound, Unavailable
from policies.terms import Focus, Modulation, Share, resolve
from tenants import limits
from tenants.admission import Admission
from tenants.cache import EntitlementCache
from tenants.entitlements import Entitlements

logger = logging.getLogger("deployments.gateway.service")

PENDING_RETRY_S = 15


@serve.ingress()
class TenantGateway:
    """Authenticates, entitles, admits, resolves a `Modulation`, routes to a shared replica, settles.

    Args:
        args: the application's arguments.
        models: a handle for each model of the same application, by id; others are found as they come.
        access: how to find the store.
    """

    async def __init__(
        self,
        args: AppArgs,
        models: Mapping[str, DeploymentHandle],
        access: StoreAccess,
    ) -> None:
        self.args = args
        self.fleet = Fleet(models, applications)
        self.settings = Settings(args.gateway)
        self.intake = Intake(self.settings)
        self.store = await access.connect()
        grace = args.store.stale_grace_s
        self.cache = EntitlementCache(self.store, ttl_s=args.store.cache_ttl_s, stale_grace_s=grace)
        await self.cache.start()
        self.admission = Admission(self.store, stale_grace_s=grace, held_dir=args.store.folder / "held")
        await self.admission.start()
        self.receipts = await Receipts.start(access, self.store)
        self.fleet.start()
        _freeze_heap()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self)

    def reconfigure(self, user_config: dict[str, Any] | None, rank: object = None) -> None:
        """Called by Serve at the start and at each change of `user_config`; for its `rank` also where there is none."""
        self.settings.change(user_config)

    async def authenticate(self, request: Request) -> Entitlements:
        """Who calls: the key's tenant with its entitlements. Asked once a request, before its body is read.

        Raises:
            Unauthenticated, NotEntitled (suspended, or an invalid record), Unavailable (the store is away).
        """
        known: Entitlements | None = getattr(request.state, "entitlements", None)
        if known is not None:
            return known
        entitlements = await self.cache.authenticate(_api_key(request))
        request.state.entitlements = entitlements
        receipt: Receipt = request.state.receipt
        receipt.limits = partial(self._limits, entitlements)
        receipt.headers["x-tenant-tier"] = quote(entitlements.tier.name)
        receipt.headers["x-policy-version"] = entitlements.version
        return entitlements

    def entitle(self, entitlements: Entitlements, model_id: str) -> ModelInfo:
        """What the tenant may use: the model, if it exists for it.

        Raises:
            NotFound, NotEntitled, Unavailable (its replica is still starting).
        """
        if model_id not in self.fleet.handles:
            known = ", ".join(m for m in self.fleet.handles if entitlements.may_use(m))
            raise NotFound(f"No model '{model_id}'. This key may use: {known}.", param="model", code="model_not_found")
        if not entitlements.may_use(model_id):
            raise NotEntitled(
                f"This key is not entitled to the model '{model_id}'.", param="model", code="model_not_entitled"
            )
        if not entitlements.may_infer():
            raise NotEntitled("This key's scopes do not include inference.", code="scope_not_entitled")
        if model_id not in self.fleet.infos:
            raise Unavailable(f"The model '{model_id}' is starting.", retry_after=5, code="model_starting")
        return self.fleet.infos[model_id]

    @asynccontextmanager
    async def admit(
        self,
        request: Request,
        model_id: str,
        cost: Cost,
        *,
        utility: float | None = None,
        focus: Focus | None = None,
        entitlements: Entitlements | None = None,
    ) -> AsyncIterator[Ticket]:
        """A request's way in: authenticate, entitle, resolve, admit; on the way out its lease is released and settled.

        Within, `Ticket.call` routes to the shared replica and `Ticket.lease.settle` books what was really used.
        """
        receipt: Receipt = request.state.receipt
        entitlements = entitlements or await self.authenticate(request)
        model = self.entitle(entitlements, model_id)
        modulation = resolve(
            entitlements.tier,
            model.id,
            floor=model.floor,
            classes=model.classes,
            standing=entitlements.focus(model.id),
            utility=utility,
            focus=focus,
        )
        _check_pending(model, modulation)
        until, lease_s = self._until(request), self.settings.now.deadline_s + 30.0
        lease = self.admission.admit(
            entitlements, model=model.id, images=cost.images, tokens=cost.tokens, lease_s=lease_s
        )
        try:
            async with lease:
                receipt.headers.update(lease.headers() | _modulation_headers(modulation))
                receipt.sign = partial(self.receipts.sign, request, entitlements, model.id, modulation)
                yield Ticket(entitlements, model, modulation, lease, self.fleet.use(model.id), receipt, until)
        except LimitExceeded:
            receipt.headers.update(lease.headers())
            raise

    async def count_tokens(self, request: Request, model_id: str, prompt: Any, share: Share) -> list[int]:
        """Tokens of a conversation, or of each of several texts, as the model's replica counts them for a tenant.

        Raises:
            DeadlineExceeded, Unavailable: as `call_replica`; what it takes is of the request's one deadline.
        """
        until = self._until(request)
        counted: list[int] = await call_replica(self.fleet.use(model_id), "count", prompt, share, deadline=until)
        return counted

    def _until(self, request: Request) -> float:
        """Loop time at which a request's deadline ends. It begins once, when a model is first waited for."""
        receipt: Receipt = request.state.receipt
        if receipt.until is None:
            receipt.until = asyncio.get_running_loop().time() + self.settings.now.deadline_s
        return receipt.until

    async def _limits(self, entitlements: Entitlements) -> dict[str, str]:
        """The `x-ratelimit-*` headers of an answer to which no admission gave them."""
        if all(held_to.rpm is held_to.tpm is None for _, held_to in limits.scopes(entitlements)):
            return {}
        return limits.headers(entitlements, await self.admission.look(entitlements))

    def models_for(self, entitlements: Entitlements) -> list[ModelInfo]:
        """The models that are ready and that the tenant may use."""
        return [info for info in self.fleet.infos.values() if entitlements.may_use(info.id)]

    def pending(self) -> list[str]:
        """What is lacking while requests are answered: levels of models, the signature, settings refused."""
        pending = [f"model {info.id}: {info.pending}" for info in self.fleet.infos.values() if info.pending]
        pending += [f"model {model_id} is starting" for model_id in self.fleet.starting(own=False)]
        return [*pending, *filter(None, [self.receipts.problem, self.settings.problem])]

    def readiness(self) -> list[str]:
        """Reasons why this gateway cannot serve every model of its own application now; empty when it can."""
        reasons = [f"model {model_id} is starting" for model_id in self.fleet.starting(own=True)]
        healthy, reason = self.cache.healthy
        return reasons if healthy else [reason, *reasons]

    def readiness_of(self, model_id: str) -> tuple[list[str], list[str]] | None:
        """Reasons why one model cannot be served now, and what it does not serve yet; None: there is no such model."""
        if model_id not in self.fleet.handles:
            return None
        if (info := self.fleet.infos.get(model_id)) is None:
            return [f"model {model_id} is starting"], []
        return [], [info.pending] if info.pending else []

    async def __del__(self) -> None:
        """Called by Serve at shutdown: what is not settled yet is."""
        for part in ("fleet", "receipts", "admission", "cache", "store"):
            if hasattr(self, part):
                await getattr(self, part).aclose()


def _freeze_heap() -> None:
    """Keep collections from looking at all that was imported: a full one would stop every request for 0.1 s."""
    if in_replica():
        gc.collect()
        gc.freeze()


def _api_key(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("x-api-key", "").strip()


def _check_pending(model: ModelInfo, modulation: Modulation) -> None:
    """Refuse what a model does not serve yet: better nothing than a level that nobody has solved, or a better one."""
    if model.pending and (modulation.utility < 1.0 or modulation.focus):
        raise Unavailable(
            f"The model '{model.id}' serves utility 1.0 without focus so far: {model.pending}. Try again later.",
            retry_after=PENDING_RETRY_S,
            code="levels_pending",
        )


def _modulation_headers(modulation: Modulation) -> dict[str, str]:
    headers = {"x-utility": f"{modulation.utility:g}"}
    if modulation.focus:
        headers["x-focus"] = ",".join(f"{quote(name)}={f:g}" for name, f in modulation.focus.items())
    return headers
