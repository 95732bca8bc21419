"""The gateway's service: who calls, what it may do, and a request's way in and out. Without HTTP and without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from urllib.parse import quote

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo
from deployments.gateway.context import RequestContext
from deployments.gateway.models import Models
from deployments.gateway.prompts import SHORT, Prompt, Prompts, size
from deployments.gateway.receipts import Receipts
from deployments.gateway.settings import Settings
from deployments.gateway.ticket import Cost, Ticket
from deployments.gateway.waiting import Waiting
from policies.errors import LimitExceeded, NotEntitled, NotFound, Unavailable
from policies.terms import Disclosure, Focus, Modulation, Tier, resolve
from tenants.live.cache import EntitlementCache
from tenants.live.entitlements import Entitlements
from tenants.metering.admission import Admission
from tenants.records.ladders import NEVER

COST = "x-cost"
"""Header: micro-units of the plan's currency, where a tier shows them."""
REASON = "x-utility-reason"
"""Header: why the level is below what was asked for: budget, quota or busy."""
PENDING_RETRY_S = 15
FETCH_PERIOD_S = 0.5
"""How often it is looked whether a tokenizer is missing."""


class Gateway:
    """Authenticates, entitles, admits, resolves a `Modulation`, routes to a shared replica, settles.

    Args:
        settings: what an operator has set.
        models: what it routes to.
        cache: what tenants may do.
        admission: their limits.
        receipts: signs what an answer was given at.
    """

    def __init__(
        self, settings: Settings, models: Models, cache: EntitlementCache, admission: Admission, receipts: Receipts
    ) -> None:
        self.settings, self.models = settings, models
        self.cache, self.admission, self.receipts = cache, admission, receipts
        self.prompts = Prompts()
        self.waiting = Waiting()
        self._fetching: asyncio.Task[None] | None = None

    async def authenticate(self, context: RequestContext, api_key: str) -> Entitlements:
        """Who calls: the key's tenant with its entitlements. Asked once a request, before its body is read.

        Raises:
            Unauthenticated, NotEntitled (suspended, or an invalid record), Unavailable (the store is away).
        """
        return self._recognised(context, await self.cache.authenticate(api_key))

    async def authenticate_again(self, context: RequestContext, digest: str, tenant: str) -> Entitlements:
        """As `authenticate`, by a key's SHA-256: of work that goes on after its request, and waits behind all other."""
        own = await self.cache.known(digest, tenant)
        return self._recognised(context, replace(own, background=True, when_busy=NEVER))

    def _recognised(self, context: RequestContext, entitlements: Entitlements) -> Entitlements:
        context.entitlements = entitlements
        context.limits = partial(self.admission.headers, entitlements)
        context.headers["x-tenant-tier"] = quote(entitlements.tier.name)
        context.headers["x-policy-version"] = entitlements.version
        return entitlements

    def entitle(self, entitlements: Entitlements, model_id: str) -> ModelInfo:
        """What the tenant may use: the model of an id or an alias, if it exists for it.

        Raises:
            NotFound, NotEntitled, Unavailable (its replica is still starting).
        """
        model_id = self._of_alias(model_id)
        if model_id not in self.models.known():
            known = ", ".join(m for m in self.models.known() if entitlements.may_use(m))
            raise NotFound(f"No model '{model_id}'. This key may use: {known}.", param="model", code="model_not_found")
        if not entitlements.may_use(model_id):
            raise NotEntitled(
                f"This key is not entitled to the model '{model_id}'.", param="model", code="model_not_entitled"
            )
        if not entitlements.may_infer():
            raise NotEntitled("This key's scopes do not include inference.", code="scope_not_entitled")
        if model_id not in self.models.infos:
            raise Unavailable(f"The model '{model_id}' is starting.", retry_after=5, code="model_starting")
        info = self.models.infos[model_id]
        if wrong := [name for name in info.aliases if entitlements.names(name)]:
            raise NotEntitled(
                f"This tenant's or its tier's record has a field for '{wrong[0]}', which is another name of the model"
                f" '{info.id}'; records go by the id: an admin must write the field for that.",
                param="model",
                code="entitlements_invalid",
            )
        return info

    def _of_alias(self, name: str) -> str:
        """A model's id, by any of its names; of models that claim one alias, the first in order."""
        if name in self.models.known():
            return name
        return min((info.id for info in self.models.infos.values() if name in info.aliases), default=name)

    @asynccontextmanager
    async def admit(
        self,
        context: RequestContext,
        model_id: str,
        cost: Cost,
        *,
        utility: float | None = None,
        focus: Focus | None = None,
        needs: Callable[[Disclosure], None] = lambda disclosed: None,
    ) -> AsyncIterator[Ticket]:
        """A known caller's way in: entitle, resolve, admit; on the way out its lease is released and settled.

        Within, `Ticket.call` routes to the shared replica and `Ticket.lease.settle` books what was really used. What
        fails by our own doing (an error that is no client's: late, away, a bug) is not booked at all.

        Where the tenant's quotas or budgets are used up, or the model is busy, its terms may grant an answer at a lower
        level than it asked for: `Ticket.modulation` says which.

        Args:
            needs: raises NotEntitled where the request wants more than a level discloses; it is not lowered to that.
        """
        entitlements = context.caller
        model = self.entitle(entitlements, model_id)
        modulation = _resolved(entitlements, model, utility, focus)
        until, lease_s = self._until(context), self.settings.now.deadline_s + 30.0
        lease = self.admission.admit(
            entitlements,
            model=model.id,
            images=cost.images,
            tokens=cost.tokens,
            level=modulation.utility,
            floor=model.floor,
            waiting=self.waiting[model.id],
            answerable=partial(_answerable, entitlements.tier, model, needs),
            focused=bool(modulation.focus),
            lease_s=lease_s,
        )
        # What gives way to everybody makes nobody else's answers step down.
        busy = Waiting() if entitlements.background else self.waiting
        place = busy.enter(model.id)  # from here on, so that of many at once each sees those before it
        try:
            async with lease:
                modulation = _lowered(entitlements.tier, model, modulation, lease.sold.level)
                context.headers.update(lease.headers() | _modulation_headers(modulation, lease.reason))
                terms = (entitlements, model.id, modulation, lease.reason)
                context.sign = partial(self.receipts.sign, context.number, *terms)
                remote = self.models.model(model.id)
                ticket = Ticket(entitlements, model, modulation, lease, remote, context, until, place)
                try:
                    yield ticket
                finally:
                    await ticket.book()
        except LimitExceeded:
            context.headers.update(lease.headers())
            raise
        finally:
            place.leave()
            if entitlements.show_cost:
                context.headers[COST] = str(lease.cost)

    async def encode(self, context: RequestContext, info: ModelInfo, prompt: Prompt) -> list[list[int]]:
        """Token ids of a conversation, or of each of several texts, as the model's replicas read them.

        Raises:
            InvalidRequest: the model's template refuses it, or an id is no token.
            LimitExceeded: it would take a while, and the caller's rate or concurrency is used up already.
            DeadlineExceeded, Unavailable: as `Prompts.encode`; what it takes is of the request's one deadline.
        """
        if size(prompt) > SHORT:
            self.admission.check_rate(context.caller)
        model, until = self.models.model(info.id), self._until(context)
        return await self.prompts.encode(info, model, prompt, context.caller.share(), deadline=until)

    def start(self) -> None:
        """Have each text model's tokenizer fetched as the model comes."""
        self._fetching = asyncio.create_task(self._fetch(), name="tokenizers")

    async def aclose(self) -> None:
        """End what `start` began."""
        if self._fetching is not None:
            self._fetching.cancel()
        await self.prompts.aclose()

    async def _fetch(self) -> None:
        while True:
            infos = list(self.models.infos.values())
            self.prompts.keep(infos)
            for info in filter(
                self.prompts.lacks, infos
            ):  # others are left alone: to be asked wakes a model that sleeps
                self.prompts.want(info, self.models.model(info.id))
            await asyncio.sleep(FETCH_PERIOD_S)

    def _until(self, context: RequestContext) -> float:
        """Loop time at which a request's deadline ends. It begins once, when a model is first waited for."""
        if context.until is None:
            context.until = asyncio.get_running_loop().time() + self.settings.now.deadline_s
        return context.until

    def models_for(self, entitlements: Entitlements) -> list[ModelInfo]:
        """The models that are ready and that the tenant may use."""
        return [info for info in self.models.infos.values() if entitlements.may_use(info.id)]

    def pending(self) -> list[str]:
        """What is lacking while requests are answered: levels, models of other applications, what was refused."""
        pending = [f"model {info.id}: {info.pending}" for info in self.models.infos.values() if info.pending]
        pending += [f"model {model_id} is starting" for model_id in self.models.starting(own=False)]
        return [*pending, *filter(None, [self.receipts.problem, self.settings.problem])]

    def readiness(self) -> list[str]:
        """Reasons why this gateway cannot serve every model of its own application now; empty when it can."""
        reasons = [f"model {model_id} is starting" for model_id in self.models.starting(own=True)]
        healthy, reason = self.cache.healthy
        return reasons if healthy else [reason, *reasons]

    def readiness_of(self, model_id: str) -> tuple[list[str], list[str]] | None:
        """Reasons why one model cannot be served now, and what it does not serve yet; None: there is no such model."""
        if model_id not in self.models.known():
            return None
        if (info := self.models.infos.get(model_id)) is None:
            return [f"model {model_id} is starting"], []
        return [], [info.pending] if info.pending else []


def _resolved(own: Entitlements, model: ModelInfo, utility: float | None, focus: Focus | None) -> Modulation:
    """The terms of one answer. Raises as `resolve`, and Unavailable where the model does not serve them yet."""
    modulation = resolve(
        own.tier,
        model.id,
        floor=model.floor,
        classes=model.classes,
        standing=own.focus(model.id),
        utility=utility,
        focus=focus,
    )
    _check_pending(model, modulation)
    return modulation


def _check_pending(model: ModelInfo, modulation: Modulation) -> None:
    """Refuse what a model does not serve yet: better nothing than a level that nobody has solved, or a better one."""
    if model.pending and (modulation.utility < 1.0 or modulation.focus):
        raise Unavailable(
            f"The model '{model.id}' serves utility 1.0 without focus so far: {model.pending}. Try again later.",
            retry_after=PENDING_RETRY_S,
            code="levels_pending",
        )


def _answerable(tier: Tier, model: ModelInfo, needs: Callable[[Disclosure], None], level: float) -> bool:
    if model.task is Task.EMBEDDING and level < 1.0:
        return False  # an embedding has no level below it
    try:
        needs(tier.disclosure(level))
    except NotEntitled:
        return False
    return True


def _lowered(tier: Tier, model: ModelInfo, modulation: Modulation, level: float) -> Modulation:
    """The terms of an answer at the level that was granted. Raises Unavailable where the model lacks it still."""
    if level == modulation.utility:
        return modulation
    lower = modulation.model_copy(update={"utility": level, "disclosure": tier.disclosure(level)})
    _check_pending(model, lower)
    return lower


def _modulation_headers(modulation: Modulation, reason: str) -> dict[str, str]:
    headers = {"x-utility": f"{modulation.utility:g}"}
    if reason:
        headers[REASON] = reason
    if modulation.focus:
        headers["x-focus"] = ",".join(f"{quote(name)}={f:g}" for name, f in modulation.focus.items())
    return headers
