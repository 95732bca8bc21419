"""Admission: one atomic round trip before a request runs, one settlement after it, off its path."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from policies.errors import Unavailable
from tenants.live.entitlements import Entitlements
from tenants.metering import limits, meters
from tenants.metering.journal import Journal
from tenants.metering.last_known import LastKnown
from tenants.metering.lease import Lease
from tenants.metering.limits import Judgement
from tenants.metering.local import LocalLimits
from tenants.metering.meters import HeldTo
from tenants.metering.questions import Questions
from tenants.metering.refusals import Refusals
from tenants.metering.settlement import Sold
from tenants.metering.settler import Settler
from tenants.metering.shared import SharedLease, projects_of
from tenants.metering.usage import Usage, read_usage
from tenants.metering.wanted import Rung, Tokens, Wanted, rungs_of
from tenants.records import keyspace
from tenants.records.prices import FREE
from tenants.records.schema import RecordError
from tenants.store import errors
from tenants.store.store import TenantStore

logger = logging.getLogger(__name__)

LEASE_S = 300.0
L = TypeVar("L", bound=Lease)
NOTHING = Wanted(0, 0, Tokens(), (Rung(1.0, FREE),))


class Admission:
    """Admits requests against a tenant's limits and books what they use.

    Args:
        stale_grace_s: how long requests are admitted under limits of this process alone while the store is away, in a
            Cluster the node of their tenant's counters.
        held_dir: folder where settlements that the store cannot take are kept; None keeps them in memory alone.

    Attributes:
        observe: told of every judgement.
    """

    def __init__(self, store: TenantStore, *, stale_grace_s: float = 300.0, held_dir: str | Path | None = None) -> None:
        self.refusals = Refusals()
        journal = None if held_dir is None else Journal(Path(held_dir))
        self.settler = Settler(store, journal=journal, booked=self.refusals.settled)
        self.questions = Questions(store, self.settler.ended)
        self.local = LocalLimits()
        self.last_known = LastKnown()
        self.observe: Callable[[Entitlements, Judgement], None] | None = None
        self._store = store
        self._grace = stale_grace_s
        self._away_since: dict[str, float] = {}

    def admit(
        self,
        entitlements: Entitlements,
        *,
        model: str,
        requests: int = 1,
        images: int = 0,
        tokens: int | Tokens = 0,
        level: float | None = None,
        floor: float = 0.01,
        waiting: int = 0,
        answerable: Callable[[float], bool] = lambda level: True,
        focused: bool = False,
        lease_s: float = LEASE_S,
    ) -> Lease:
        """A lease to enter with `async with`; entering asks the store.

        Args:
            tokens: prompt and most tokens of the answer together; what is not used is returned.
            level: what is asked for, None: the tier's own level of the model. The lease says what is granted.
            floor, waiting, answerable: as of `rungs_of`, where the tenant's answers may step down.
            focused: whether the answer is steered.
            lease_s: seconds after which a request whose process has died gives back what it was admitted with.

        Raises (on entering):
            LimitExceeded: `rate_limit_exceeded`, `concurrency_limit_exceeded` or `quota_exceeded`.
            Unavailable: the store has been away for longer than the grace.
        """
        top = entitlements.tier.level(model) if level is None else level
        asked = tokens if isinstance(tokens, Tokens) else Tokens(tokens, tokens)
        rungs = rungs_of(entitlements, model, top, floor=floor, waiting=waiting, answerable=answerable)
        wanted = Wanted(requests, images, asked, rungs)

        def lease(kind: type[L], own: Entitlements) -> L:
            held_to = meters.limits_of(own, model)
            sold = Sold(
                tenant=own.tenant,
                key=own.key_id,
                model=model,
                tier=own.tier.name,
                level=top,
                focused=focused,
                parts=held_to.parts,
                periods=held_to.periods,
            )
            return kind(self, own, held_to, sold, wanted, lease_s)

        if not entitlements.projects:
            return lease(Lease, entitlements)
        return lease(SharedLease, entitlements).share(
            {name: lease(Lease, own) for name, own in projects_of(entitlements).items()}
        )

    async def look(self, entitlements: Entitlements) -> Judgement:
        """What is used of a tenant's limits; of this process's own counts while the store is away."""
        held_to = meters.limits_of(entitlements)
        try:
            answer = await self.questions.look(entitlements.tenant, held_to, NOTHING)
            return self._heard(entitlements, answer, NOTHING)
        except Unavailable:
            return self.local.judge(entitlements.tenant, held_to, NOTHING)

    def check_rate(self, entitlements: Entitlements) -> None:
        """Refuse one more request, without asking the store, where this process alone has admitted all that it may.

        Raises:
            LimitExceeded: `rate_limit_exceeded`, `concurrency_limit_exceeded` or `quota_exceeded`.
        """
        tenant, held_to = entitlements.tenant, meters.limits_of(entitlements)
        one = Wanted(1, 0, Tokens(), [Rung(1.0, FREE, percent) for percent in entitlements.when_exhausted.percents])
        judgement = self.refusals.find(tenant, held_to, one) or self.local.judge(tenant, held_to, one, surely=True)
        if judgement.forbidden_by is not None:
            raise limits.exceeded(judgement)

    def headers(self, entitlements: Entitlements) -> dict[str, str]:
        """The `x-ratelimit-*` headers as of the last admission here; none before there was one. Asks no store."""
        known = self.last_known.now(entitlements)
        return {} if known is None else limits.headers(known)

    async def remaining(self, entitlements: Entitlements) -> dict[str, float]:
        """What is left of each limit that is set, by name."""
        left = limits.remaining(await self.look(entitlements))
        for own in projects_of(entitlements).values():
            for field, amount in limits.remaining(await self.look(own)).items():
                left[field] = min(left.get(field, amount), amount)
        return left

    async def usage(self, tenant: str, *days: str) -> list[Usage]:
        """What a tenant has used on UTC days. Raises Unavailable, also where a counter is broken."""
        try:
            return await read_usage(self._store, tenant, *days)
        except RecordError as error:
            logger.error("usage cannot be read: %s", error)
            raise Unavailable("The usage of this tenant is broken; ask the operator.", code=errors.BROKEN) from None

    async def start(self) -> None:
        """Take over the settlements that gateways of this machine left behind."""
        await self.settler.start()

    async def drain(self, timeout_s: float = 5.0) -> bool:
        """Wait until every settlement is with the store; False if that takes longer."""
        return await self.settler.drain(timeout_s)

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Settle what is left, within `timeout_s`; what the store does not take is kept for the next gateway."""
        await self.questions.aclose()
        await self.settler.aclose(timeout_s)

    async def ask(
        self, own: Entitlements, held_to: HeldTo, request_id: str, wanted: Wanted, lease_s: float
    ) -> Judgement:
        """What the store says of a request, which it counts if it may run; raises Unavailable while it is away."""
        return self._heard(own, await self.questions.ask(own.tenant, held_to, request_id, wanted, lease_s), wanted)

    def _heard(self, own: Entitlements, answer: Judgement, wanted: Wanted) -> Judgement:
        if self._away_since:
            self._away_since.pop(self._store.servers.home(keyspace.request(own.tenant)), None)
        self.local.learn(own.tenant, answer)
        self.refusals.learn(own.tenant, answer, wanted)
        self.last_known.tell(own, answer)
        return answer

    def ask_locally(self, tenant: str, held_to: HeldTo, wanted: Wanted, error: Unavailable) -> Judgement:
        """The answer of this process's own counts, within the grace; raises `error` after it."""
        now, servers, key = time.monotonic(), self._store.servers, keyspace.request(tenant)
        if (home := servers.home(key)) not in self._away_since:
            self._away_since[home] = now - servers.away_for(key)
            where = f"node {home} of the tenant store" if home else "the tenant store"
            logger.warning("admitting under local limits: %s is away", where)
        if now - self._away_since[home] > self._grace:
            raise Unavailable(
                f"The tenant store has been away for over {self._grace:g} s; nothing is served until it is back.",
                retry_after=error.retry_after,
                code="store_unavailable",
            ) from error
        return self.local.judge(tenant, held_to, wanted)
