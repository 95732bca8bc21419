"""Admission: one atomic round trip before a request runs, one settlement after it, off its path."""

from __future__ import annotations

import logging
import secrets
import time
from pathlib import Path
from types import TracebackType

from policies.errors import Unavailable
from tenants import keyspace, limits, refusals, scripts
from tenants.entitlements import Entitlements
from tenants.journal import Journal
from tenants.limits import Judgement, Standing
from tenants.local import LocalLimits
from tenants.settlement import Settlement, Settler, today
from tenants.store import TenantStore
from tenants.told import Told

logger = logging.getLogger(__name__)

LEASE_S = 300.0
_UNKNOWN = Judgement("", False, 0, Standing(), None)
_ADMIT = scripts.load("admit")


class Admission:
    """Admits requests against a tenant's limits and books what they use.

    Args:
        stale_grace_s: how long requests are admitted under limits of this process alone while the store is away.
        held_dir: folder where settlements that the store cannot take are kept; None keeps them in memory alone.
    """

    def __init__(self, store: TenantStore, *, stale_grace_s: float = 300.0, held_dir: str | Path | None = None) -> None:
        self.settler = Settler(store, journal=None if held_dir is None else Journal(Path(held_dir)))
        self.local = LocalLimits()
        self.told = Told()
        self._store = store
        self._grace = stale_grace_s
        self._away_since: float | None = None

    def admit(
        self,
        entitlements: Entitlements,
        *,
        model: str,
        requests: int = 1,
        images: int = 0,
        tokens: int = 0,
        lease_s: float = LEASE_S,
    ) -> Lease:
        """A lease to enter with `async with`; entering asks the store.

        Args:
            tokens: prompt and most tokens of the answer together; what is not used is returned.
            lease_s: seconds after which a lease whose process has died no longer counts as running.

        Raises (on entering):
            LimitExceeded: `rate_limit_exceeded`, `concurrency_limit_exceeded` or `quota_exceeded`.
            Unavailable: the store has been away for longer than the grace.
        """
        return Lease(self, entitlements, model, requests, images, tokens, lease_s)

    async def look(self, entitlements: Entitlements) -> Judgement:
        """What is used of a tenant's limits; of this process's own counts while the store is away."""
        lease = Lease(self, entitlements, "", 0, 0, 0, 0.0)
        try:
            return await self.ask("look", lease)
        except Unavailable:
            return self.local.judge(entitlements, 0, 0)

    def check_rate(self, entitlements: Entitlements) -> None:
        """Refuse one more request, without asking the store, where this process alone has admitted all that it may.

        Raises:
            LimitExceeded: `rate_limit_exceeded` or `concurrency_limit_exceeded`.
        """
        judgement = self.local.judge(entitlements, 1, 0, surely=True)
        if judgement.verdict:
            raise limits.exceeded(entitlements, judgement)

    def headers(self, entitlements: Entitlements) -> dict[str, str]:
        """The `x-ratelimit-*` headers as of the last admission here; none before there was one. Asks no store."""
        known = self.told.now(entitlements)
        return {} if known is None else limits.headers(entitlements, known)

    async def remaining(self, entitlements: Entitlements) -> dict[str, float]:
        """What is left of each limit that is set, by name."""
        return limits.remaining(entitlements, await self.look(entitlements))

    async def start(self) -> None:
        """Take over the settlements that gateways of this machine left behind."""
        await self.settler.start()

    async def drain(self, timeout_s: float = 5.0) -> bool:
        """Wait until every settlement is with the store; False if that takes longer."""
        return await self.settler.drain(timeout_s)

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Settle what is left, within `timeout_s`; what the store does not take is kept for the next gateway."""
        await self.settler.aclose(timeout_s)

    async def ask(self, mode: str, lease: Lease) -> Judgement:
        """One run of `admit.lua`; raises Unavailable while the store is away."""
        own = lease.entitlements
        keys: list[str] = []
        amounts: list[int] = [lease.requests, lease.images, lease.tokens]
        for key_id, held_to in limits.scopes(own):
            keys += [
                keyspace.requests_window(own.tenant, key_id),
                keyspace.tokens_window(own.tenant, key_id),
                keyspace.leases(own.tenant, key_id),
                keyspace.usage(own.tenant, key_id),
            ]
            amounts += limits.as_arguments(held_to)
        keys.insert(4, keyspace.lease(own.tenant, lease.id))
        # Only a concurrency limit minds leases that have ended but are not settled yet.
        limited = any(held_to.concurrency is not None for _, held_to in limits.scopes(own))
        ended = self.settler.ended(own.tenant) if limited else ()
        arguments = (mode, lease.id, round(lease.lease_s * 1000), lease.model, *amounts, *ended)
        answer = limits.read_answer(await self._store.run(_ADMIT, keys, arguments))
        self._away_since = None
        self.told.tell(own, answer)
        return answer

    def ask_locally(self, lease: Lease, error: Unavailable) -> Judgement:
        """The answer of this process's own counts, within the grace; raises `error` after it."""
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            logger.warning("admitting under local limits: the tenant store is away")
        if now - self._away_since > self._grace:
            raise Unavailable(
                f"The tenant store has been away for over {self._grace:g} s; nothing is served until it is back.",
                retry_after=error.retry_after,
                code="store_unavailable",
            ) from error
        return self.local.judge(lease.entitlements, lease.requests, lease.tokens)


class Lease:
    """One request's admission. Leaving its `async with` releases it, whatever happened, and settles what was used.

    What is booked: what `settle` last said; without it, all that was reserved, or only the request where it failed.
    """

    __slots__ = (
        *("id", "entitlements", "model", "requests", "images", "tokens", "lease_s"),
        *("_admission", "_judgement", "_used", "_held"),
    )

    def __init__(
        self,
        admission: Admission,
        entitlements: Entitlements,
        model: str,
        requests: int,
        images: int,
        tokens: int,
        lease_s: float,
    ) -> None:
        # Never a client's id: a repeated one would settle another's request.
        self.id = secrets.token_hex(12)
        self.entitlements = entitlements
        self.model = model
        self.requests = requests
        self.images = images
        self.tokens = tokens
        self.lease_s = lease_s
        self._admission = admission
        self._judgement = _UNKNOWN
        self._used: tuple[int, int, int] | None = None
        self._held = ""

    def settle(self, *, tokens_in: int = 0, tokens_out: int = 0, images: int | None = None) -> None:
        """Record what the request has used so far, in all; `images` None is as admitted. Sends nothing yet."""
        self._used = (self.images if images is None else images, tokens_in, tokens_out)

    def headers(self) -> dict[str, str]:
        """The `x-ratelimit-*` headers of the limits that are set, as of the admission or of the refusal."""
        return {} if self._judgement is _UNKNOWN else limits.headers(self.entitlements, self._judgement)

    async def __aenter__(self) -> Lease:
        uncertain = True
        try:
            try:
                self._judgement = await self._admission.ask("admit", self)
                uncertain = False
            except Unavailable as error:
                uncertain = error.__cause__ is not None
                if error.code == refusals.BROKEN:  # a counter that is none must not free its tenant from quotas
                    raise
                self._judgement = self._admission.ask_locally(self, error)
                # The store may have admitted it just before its answer was lost; a held settlement covers both.
                self._held = today()
            if self._judgement.verdict:
                raise limits.exceeded(self.entitlements, self._judgement)
        except BaseException:
            if uncertain:
                self._abandon()
            raise
        self._admission.local.start(self.entitlements, self.requests, self.tokens)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.local.end(self.entitlements)
        if self._used is None:
            self._used = (self.images, self.tokens, 0) if kind is None else (0, 0, 0)
        images, tokens_in, tokens_out = self._used
        self._put(self.requests, images, tokens_in, tokens_out)

    def _abandon(self) -> None:
        """Undo an admission that the store may have made without our hearing of it."""
        self._held = ""
        self._put(0, 0, 0, 0, abandoned=True)

    def _put(self, requests: int, images: int, tokens_in: int, tokens_out: int, *, abandoned: bool = False) -> None:
        own = self.entitlements
        key_id = "" if own.key_limits is None else own.key_id
        amounts = (requests, images, tokens_in, tokens_out)
        self._admission.settler.put(
            Settlement(own.tenant, self.id, self.model, *amounts, key_id=key_id, held=self._held, abandoned=abandoned)
        )
