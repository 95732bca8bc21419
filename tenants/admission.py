"""Admission: one atomic round trip before a request runs, one settlement after it, off its path."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from policies.errors import Unavailable
from tenants import limits, meters, refusals, scripts
from tenants.entitlements import Entitlements
from tenants.journal import Journal
from tenants.limits import Judgement
from tenants.local import LocalLimits
from tenants.meters import Counter, Limit, Meter
from tenants.outcome import Outcome, outcome_of
from tenants.settlement import STEMS, Settlement, Sold, State
from tenants.settler import Settler
from tenants.store import TenantStore

logger = logging.getLogger(__name__)

LEASE_S = 300.0
BYTES_PER_TOKEN = 16
"""More than any text has: where the bound of a prompt does not fit, but this much would, its tokens are counted."""
_UNKNOWN = Judgement()
_ADMIT = scripts.load("meters", "admit")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens that a request may use.

    Attributes:
        most: prompt and answer together, at most. What is not used is returned.
        least: will do where less is left: the answer then has to end sooner.
        count: the same with the prompt counted instead of bounded by its bytes, asked for only where the bound does
            not fit; None where it is counted.
    """

    most: int = 0
    least: int = 0
    count: Callable[[], Awaitable[Tokens]] | None = None


class Admission:
    """Admits requests against a tenant's limits and books what they use.

    Args:
        stale_grace_s: how long requests are admitted under limits of this process alone while the store is away.
        held_dir: folder where settlements that the store cannot take are kept; None keeps them in memory alone.
    """

    def __init__(self, store: TenantStore, *, stale_grace_s: float = 300.0, held_dir: str | Path | None = None) -> None:
        self.settler = Settler(store, journal=None if held_dir is None else Journal(Path(held_dir)))
        self.local = LocalLimits()
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
        tokens: int | Tokens = 0,
        level: float | None = None,
        focused: bool = False,
        lease_s: float = LEASE_S,
    ) -> Lease:
        """A lease to enter with `async with`; entering asks the store.

        Args:
            tokens: prompt and most tokens of the answer together; what is not used is returned.
            level: what is sold, None: the tier's own level of the model.
            focused: whether the answer is steered.
            lease_s: seconds after which a request whose process has died gives back what it was admitted with.

        Raises (on entering):
            LimitExceeded: `rate_limit_exceeded`, `concurrency_limit_exceeded` or `quota_exceeded`.
            Unavailable: the store has been away for longer than the grace.
        """
        held_to = meters.limits_of(entitlements, model)
        sold = Sold(
            tenant=entitlements.tenant,
            key=entitlements.key_id,
            model=model,
            tier=entitlements.tier.name,
            level=entitlements.tier.level(model) if level is None else level,
            focused=focused,
            parts=tuple(meters.parts(held_to)),
            periods=tuple(meters.periods(held_to)),
        )
        wanted = tokens if isinstance(tokens, Tokens) else Tokens(tokens, tokens)
        return Lease(self, held_to, sold, requests, images, wanted, lease_s)

    async def look(self, entitlements: Entitlements) -> Judgement:
        """What is used of a tenant's limits; of this process's own counts while the store is away."""
        held_to = meters.limits_of(entitlements)
        try:
            return await self.ask("look", entitlements.tenant, "-", held_to, ())
        except Unavailable:
            return self.local.judge(entitlements.tenant, held_to, ())

    async def remaining(self, entitlements: Entitlements) -> dict[str, float]:
        """What is left of each limit that is set, by name."""
        return limits.remaining(await self.look(entitlements))

    async def start(self) -> None:
        """Take over the settlements that gateways of this machine left behind."""
        await self.settler.start()

    async def drain(self, timeout_s: float = 5.0) -> bool:
        """Wait until every settlement is with the store; False if that takes longer."""
        return await self.settler.drain(timeout_s)

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Settle what is left, within `timeout_s`; what the store does not take is kept for the next gateway."""
        await self.settler.aclose(timeout_s)

    async def ask(
        self,
        mode: str,
        tenant: str,
        request_id: str,
        held_to: Sequence[Limit],
        wanted: Sequence[Meter],
        lease_s: float = 0.0,
    ) -> Judgement:
        """One run of `admit.lua`; raises Unavailable while the store is away."""
        owners = meters.owners(held_to)
        # Only a concurrency limit minds requests that have ended but are not settled yet.
        limited = any(limit.counter is Counter.RUNNING for limit in held_to)
        asked = {
            "mode": mode,
            "id": request_id,
            "lease_ms": round(lease_s * 1000),
            "owners": [(owner.part, owner.suffix) for owner in owners],
            "meters": [(m.counter, m.amount, m.least) for m in wanted if m.counter is not Counter.RUNNING],
            "limits": [(owners.index(limit.owner) + 1, limit.counter, limit.period, limit.most) for limit in held_to],
            "ended": self.settler.ended(tenant) if limited else [],
        }
        keys = [stem(tenant) for stem in STEMS[:-1]]
        answer = limits.read_answer(held_to, await self._store.run(_ADMIT, keys, (json.dumps(asked),)))
        self._away_since = None
        self.local.learn(tenant, answer)
        return answer

    def ask_locally(
        self, tenant: str, held_to: Sequence[Limit], wanted: Sequence[Meter], error: Unavailable
    ) -> Judgement:
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
        return self.local.judge(tenant, held_to, wanted)


class Lease:
    """One request's admission. Leaving its `async with` releases it, whatever happened, and settles what was used.

    What is booked: what `settle` last said; without it, all that was reserved, or only the request where it failed.
    Nothing is where it failed by our own doing.
    """

    __slots__ = (
        *("id", "sold", "requests", "images", "tokens"),
        *("_admission", "_limits", "_wanted", "_lease_s", "_judgement", "_used", "_state", "_began", "_broke"),
    )

    def __init__(
        self,
        admission: Admission,
        held_to: Sequence[Limit],
        sold: Sold,
        requests: int,
        images: int,
        tokens: Tokens,
        lease_s: float,
    ) -> None:
        # Never a client's id: a repeated one would settle another's request.
        self.id = secrets.token_hex(12)
        self.sold = sold
        self.requests = requests
        self.images = images
        self.tokens = tokens.most
        self._admission = admission
        self._limits = held_to
        self._wanted = tokens
        self._lease_s = lease_s
        self._judgement = _UNKNOWN
        self._used: tuple[int, int, int] | None = None
        self._state = State.ADMITTED
        self._began = time.monotonic()
        self._broke: Outcome | None = None

    @property
    def short(self) -> int:
        """How many of the tokens that it asked for at most were not left."""
        return self._wanted.most - self.tokens

    def settle(self, *, tokens_in: int = 0, tokens_out: int = 0, images: int | None = None) -> None:
        """Record what the request has used so far, in all; `images` None is as admitted. Sends nothing yet."""
        self._used = (self.images if images is None else images, tokens_in, tokens_out)

    def broke(self, error: BaseException) -> None:
        """A stream that had begun ended by `error`, which its client is told inside it.

        What was delivered is billed where the client can bring the failure about: it left, or asked for more than fits
        our deadline.
        """
        self._broke = outcome_of(error)

    def headers(self) -> dict[str, str]:
        """The `x-ratelimit-*` headers of the limits that are set, as of the admission or of the refusal."""
        return limits.headers(self._judgement)

    async def __aenter__(self) -> Lease:
        if (known := self._admission.local.refused(self.sold.tenant, self._limits)) is not None:
            self._judgement = known
        else:
            await self._ask(self._wanted)
        if self._short_of_tokens() and self._wanted.count is not None:
            self._wanted = await self._wanted.count()
            await self._ask(self._wanted)
        if self._judgement.forbidden_by is not None:
            self._admission.settler.reject(self.sold.tenant, self.sold.parts, self.sold.model)
            raise limits.exceeded(self._judgement)
        self.tokens = self._judgement.tokens
        self._admission.local.start(self.sold.tenant, self._limits, self._reserved(), here=self._here)
        return self

    async def _ask(self, wanted: Tokens) -> None:
        """Ask the store, or this process's own counts where it is away."""
        self._state, tenant, meters_ = State.ADMITTED, self.sold.tenant, self._meters(wanted)
        uncertain = True
        try:
            try:
                self._judgement = await self._admission.ask(
                    "admit", tenant, self.id, self._limits, meters_, self._lease_s
                )
                uncertain = False
            except Unavailable as error:
                uncertain = error.__cause__ is not None
                if error.code == refusals.BROKEN:  # a counter that is none must not free its tenant from quotas
                    raise
                self._judgement = self._admission.ask_locally(tenant, self._limits, meters_, error)
                # The store may have admitted it just before its answer was lost; a held settlement covers both.
                self._state = State.UNSURE if uncertain else State.HELD
            if self._judgement.forbidden_by is not None and uncertain:
                self._abandon()
        except BaseException:
            if uncertain:
                self._abandon()
            raise

    def _meters(self, tokens: Tokens) -> list[Meter]:
        return [
            Meter(Counter.REQUESTS, self.requests, self.requests),
            Meter(Counter.IMAGES, self.images, self.images),
            Meter(Counter.TOKENS, tokens.most, tokens.least),
            Meter(Counter.RUNNING, 1, 1),
        ]

    def _short_of_tokens(self) -> bool:
        """Whether tokens alone were lacking, and a prompt of fewer than its bytes say might fit."""
        limit = self._judgement.forbidden_by
        if limit is None or limit.counter is not Counter.TOKENS:
            return False
        return self._judgement.left(Counter.TOKENS) * BYTES_PER_TOKEN >= self._wanted.least

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = self._broke or outcome_of(error)
        if self._used is None:
            self._used = (self.images, self.tokens, 0) if kind is None else (0, 0, 0)
        delivered = self._broke is Outcome.LATE and kind is None
        free = status.ours and not delivered
        requests, images, tokens_in, tokens_out = (0, 0, 0, 0) if free else (self.requests, *self._used)
        self._put(requests, images, tokens_in, tokens_out, status=status)
        used = {Counter.REQUESTS: requests, Counter.IMAGES: images, Counter.TOKENS: tokens_in + tokens_out}
        unused = {counter: amount - used[counter] for counter, amount in self._reserved().items()}
        self._admission.local.end(self.sold.tenant, self._limits, unused, here=self._here)

    @property
    def _here(self) -> bool:
        return self._state is not State.ADMITTED

    def _reserved(self) -> dict[Counter, int]:
        return {Counter.REQUESTS: self.requests, Counter.IMAGES: self.images, Counter.TOKENS: self.tokens}

    def _abandon(self) -> None:
        """Undo an admission that the store may have made without our hearing of it."""
        self._state = State.UNDONE
        self._put()
        # A later attempt is another request: this one's tombstone forbids it.
        self.id = secrets.token_hex(12)

    def _put(
        self,
        requests: int = 0,
        images: int = 0,
        tokens_in: int = 0,
        tokens_out: int = 0,
        *,
        status: Outcome = Outcome.SERVED,
    ) -> None:
        ms = round((time.monotonic() - self._began) * 1000)
        self._admission.settler.put(
            Settlement(
                self.sold,
                self.id,
                self._judgement.at or int(time.time()),
                self._state,
                requests,
                images,
                tokens_in,
                tokens_out,
                status,
                ms,
            )
        )
