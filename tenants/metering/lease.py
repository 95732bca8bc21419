"""One request's admission, from the question to the store to what is booked of it."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from policies.errors import Unavailable
from tenants.live.entitlements import Entitlements
from tenants.metering import limits
from tenants.metering.limits import Judgement, Reading
from tenants.metering.meters import Counter, HeldTo
from tenants.metering.outcome import Outcome, outcome_of
from tenants.metering.settlement import Settlement, Sold, State
from tenants.metering.wanted import Wanted
from tenants.store import errors

if TYPE_CHECKING:
    from tenants.metering.admission import Admission

_UNKNOWN = Judgement()


class Lease:
    """One request's admission. Leaving its `async with` releases it, whatever happened, and settles what was used.

    What is booked: what `settle` last said; without it, all that was reserved, or only the request where it failed.
    Nothing is where it failed by our own doing.

    Attributes:
        sold: what it is sold as; its level is what it was admitted at.
        reason: why that is below what it asked for: budget, quota, busy; "" where it is not.
        cost: micro-units, of what `settle` has said so far; of what is booked once it is left.
    """

    __slots__ = (
        *("id", "sold", "reason", "tokens", "cost"),
        *(
            "_admission",
            "_own",
            "_limits",
            "_wanted",
            "_lease_s",
            "_judgement",
            "_used",
            "_state",
            "_began",
            "_broke",
            "_most_cost",
        ),
    )

    def __init__(
        self,
        admission: Admission,
        entitlements: Entitlements,
        held_to: HeldTo,
        sold: Sold,
        wanted: Wanted,
        lease_s: float,
    ) -> None:
        # Never a client's id: a repeated one would settle another's request.
        self.id = secrets.token_hex(12)
        self.sold = sold
        self.reason = ""
        self.tokens = wanted.tokens.most
        self.cost = 0
        self._most_cost: int | None = None
        self._admission = admission
        self._own = entitlements
        self._limits = held_to
        self._wanted = wanted
        self._lease_s = lease_s
        self._judgement = _UNKNOWN
        self._used: tuple[int, int, int] | None = None
        self._state = State.ADMITTED
        self._began = time.monotonic()
        self._broke: Outcome | None = None

    @property
    def short(self) -> int:
        """How many of the tokens that it asked for at most were not left."""
        return self._wanted.tokens.most - self.tokens

    def settle(self, *, tokens_in: int = 0, tokens_out: int = 0, images: int | None = None) -> None:
        """Record what the request has used so far, in all; `images` None is as admitted. Sends nothing yet."""
        self._used = (self._wanted.images if images is None else images, tokens_in, tokens_out)
        self.cost = self._cost(self._wanted.requests, *self._used)

    def broke(self, error: BaseException) -> None:
        """A stream that had begun ended by `error`, which its client is told inside it.

        What was delivered is billed where the client can bring the failure about: it left, or asked for more than fits
        our deadline.
        """
        self._broke = outcome_of(error)
        if self._broke.ours and self._broke is not Outcome.LATE:
            self.cost = 0

    def want(self, wanted: Wanted) -> None:
        """Ask for something else than at first."""
        self._wanted, self.tokens = wanted, wanted.tokens.most

    @property
    def granted_cost(self) -> int:
        """Micro-units that it may cost at most: where answers go on beyond a budget, what that has left."""
        return self._judgement.cost if self._most_cost is None else min(self._judgement.cost, self._most_cost)

    def cost_at_most(self, cost: int) -> None:
        """Cost no more than another that had to be asked has left."""
        self._most_cost = cost

    def become(self, level: float, reason: str) -> None:
        """Be answered at a lower level than it was admitted at: another that had to be asked has no more left."""
        rungs, rung = self._wanted.rungs, self._judgement.rung
        while level < self.sold.level and rung < len(rungs):
            if rungs[rung].level == level:
                self._judgement = replace(self._judgement, rung=rung)
                self.sold, self.reason = replace(self.sold, level=level), reason
                return
            rung += 1

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What the last answer said of each limit."""
        return self._judgement.readings

    def check_refused(self) -> None:
        """Raises LimitExceeded where the store has just refused what is like it; asks no store."""
        known = self._admission.refusals.find(self.sold.tenant, self._limits, self._wanted)
        if known is not None:
            self._judgement = known
            raise limits.exceeded(known)

    def reject(self) -> None:
        """Count it among its tenant's refused requests."""
        self._admission.settler.reject(self.sold.tenant, self.sold.parts, self.sold.model)

    def give_back(self) -> None:
        """Undo an admission that nobody used: all that it took is free again, its place in a rate too."""
        if self._state is State.ADMITTED:
            self._state = State.RETURNED
        elif self._state is State.UNSURE:
            self._state = State.UNDONE
        if self._state is not State.HELD:
            self._put()
        here = self._state is not State.RETURNED
        self._admission.local.end(self.sold.tenant, self._limits, self._reserved(), here=here)

    def headers(self) -> dict[str, str]:
        """The `x-ratelimit-*` headers of the limits that are set, as of the admission or of the refusal."""
        return limits.headers(self._judgement)

    async def __aenter__(self) -> Lease:
        known = self._admission.refusals.find(self.sold.tenant, self._limits, self._wanted)
        if known is not None:
            self._judgement = known
        else:
            await self._ask()
        if self._admission.observe is not None:
            self._admission.observe(self._own, self._judgement)
        if self._judgement.forbidden_by is not None:
            self.reject()
            raise limits.exceeded(self._judgement)
        self._take(self._judgement)
        self._admission.local.start(self.sold.tenant, self._limits, self._reserved(), here=self._here)
        return self

    def _take(self, judgement: Judgement) -> None:
        """Become what it was admitted as."""
        self.tokens = judgement.tokens
        best, level = self._wanted.rungs[0].level, self._wanted.rungs[judgement.rung].level
        if level < best and judgement.stepped_by is not None:
            self.reason = "budget" if judgement.stepped_by.counter is Counter.COST else "quota"
        elif level < self.sold.level:
            self.reason = "busy"
        if level != self.sold.level:
            self.sold = replace(self.sold, level=level)

    async def _ask(self) -> None:
        """Ask the store, or this process's own counts where it is away."""
        self._state, tenant = State.ADMITTED, self.sold.tenant
        uncertain = True
        try:
            try:
                self._judgement = await self._admission.ask(
                    self._own, self._limits, self.id, self._wanted, self._lease_s
                )
                uncertain = False
            except Unavailable as error:
                uncertain = error.__cause__ is not None
                if error.code == errors.BROKEN:  # a counter that is none must not free its tenant from quotas
                    raise
                self._judgement = self._admission.ask_locally(tenant, self._limits, self._wanted, error)
                # The store may have admitted it just before its answer was lost; a held settlement covers both.
                self._state = State.UNSURE if uncertain else State.HELD
            if self._judgement.forbidden_by is not None and uncertain:
                self._abandon()
        except BaseException:
            if uncertain:
                self._abandon()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = self._broke or outcome_of(error)
        if self._used is None:
            self._used = (self._wanted.images, self.tokens, 0) if kind is None else (0, 0, 0)
        delivered = self._broke is Outcome.LATE and kind is None
        free = status.ours and not delivered
        requests, images, tokens_in, tokens_out = (0, 0, 0, 0) if free else (self._wanted.requests, *self._used)
        self.cost = self._cost(requests, images, tokens_in, tokens_out)
        self._put(requests, images, tokens_in, tokens_out, self.cost, status=status)
        tokens = tokens_in + tokens_out
        used = {Counter.REQUESTS: requests, Counter.IMAGES: images, Counter.TOKENS: tokens, Counter.COST: self.cost}
        unused = {counter: amount - used[counter] for counter, amount in self._reserved().items()}
        self._admission.local.end(self.sold.tenant, self._limits, unused, here=self._here)
        self._admission.refusals.ended(self.sold.tenant)

    @property
    def _here(self) -> bool:
        return self._state is not State.ADMITTED

    def _reserved(self) -> dict[Counter, int]:
        asked, cost = self._wanted, self._judgement.cost
        requests, images = asked.requests, asked.images
        return {Counter.REQUESTS: requests, Counter.IMAGES: images, Counter.TOKENS: self.tokens, Counter.COST: cost}

    def _cost(self, requests: int, images: int, tokens_in: int, tokens_out: int) -> int:
        """In micro-units; never more than was reserved, by which budgets were judged."""
        tariff = self._wanted.rungs[self._judgement.rung].tariff
        exact = tariff.cost(requests=requests, images=images, tokens_in=tokens_in, tokens_out=tokens_out)
        return min(exact, self.granted_cost)

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
        cost: int = 0,
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
                cost,
                status,
                ms,
                self.reason,
            )
        )
