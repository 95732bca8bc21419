"""One request's admission, from the question to the store to what is booked of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from policies.errors import Unavailable
from tenants.live.entitlements import Entitlements
from tenants.metering import limits
from tenants.metering.limits import Judgement, Reading
from tenants.metering.meters import Counter, Limit, Meter
from tenants.metering.outcome import Outcome, outcome_of
from tenants.metering.settlement import Settlement, Sold, State
from tenants.store import errors

if TYPE_CHECKING:
    from tenants.metering.admission import Admission

_UNKNOWN = Judgement()


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens that a request may use.

    Attributes:
        most: prompt and answer together, at most. What is not used is returned.
        least: will do where less is left: the answer then has to end sooner.
    """

    most: int = 0
    least: int = 0


class Lease:
    """One request's admission. Leaving its `async with` releases it, whatever happened, and settles what was used.

    What is booked: what `settle` last said; without it, all that was reserved, or only the request where it failed.
    Nothing is where it failed by our own doing.
    """

    __slots__ = (
        *("id", "sold", "requests", "images", "tokens"),
        *("_admission", "_own", "_limits", "_wanted", "_lease_s", "_judgement", "_used", "_state", "_began", "_broke"),
    )

    def __init__(
        self,
        admission: Admission,
        entitlements: Entitlements,
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
        self._own = entitlements
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

    def want(self, tokens: Tokens) -> None:
        """Ask for other tokens than at first."""
        self._wanted, self.tokens = tokens, tokens.most

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What the last answer said of each limit."""
        return self._judgement.readings

    def check_refused(self) -> None:
        """Raises LimitExceeded where the store has just refused what is like it; asks no store."""
        if (known := self._admission.local.refused(self.sold.tenant, self._limits)) is not None:
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
        if (known := self._admission.local.refused(self.sold.tenant, self._limits)) is not None:
            self._judgement = known
        else:
            await self._ask(self._wanted)
        if self._admission.observe is not None:
            self._admission.observe(self._own, self._judgement)
        if self._judgement.forbidden_by is not None:
            self.reject()
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
                    "admit", self._own, self.id, self._limits, meters_, self._lease_s
                )
                uncertain = False
            except Unavailable as error:
                uncertain = error.__cause__ is not None
                if error.code == errors.BROKEN:  # a counter that is none must not free its tenant from quotas
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
