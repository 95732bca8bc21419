"""What one request used, on its way to the store, and what becomes of it by the store's answer."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Any

from redis.exceptions import ResponseError

from policies.errors import Unavailable
from tenants.metering import meters
from tenants.metering.outcome import Outcome
from tenants.records import keyspace
from tenants.records.settings import DEFAULTS, Settings
from tenants.store import errors

DAY_S = 86_400
SHORT_TOMBSTONE_S = 3_600
LONG_TOMBSTONE_S = 7 * DAY_S
RETURNED_TOMBSTONE_S = 300
"""A project that is used up returns what its tenants had admitted, request by request."""


class State(StrEnum):
    """What the store knows of a request."""

    ADMITTED = "admitted"
    """It said yes, and has a record of it, if it has not lost it."""
    UNSURE = "unsure"
    """It was asked, its answer was lost, and the request was served under local limits."""
    HELD = "held"
    """It was not asked: the request was served under local limits."""
    UNDONE = "undone"
    """It was asked, its answer was lost, and the request was not served."""
    RETURNED = "returned"
    """It said yes, and the request was not served: another that had to be asked said no."""


class Answer(Enum):
    """What came of sending a settlement."""

    BOOKED = auto()
    BEFORE = auto()
    """It was booked before."""
    MISSING = auto()
    """There is neither a record of the request nor a tombstone, and it was first sent longer ago than those stay."""
    UNSENT = auto()
    """The store is known to be away."""
    SILENT = auto()
    """It was sent, and no answer came: it may be booked."""
    REFUSING = auto()
    """The server cannot book now: read-only, out of memory, a slot of nobody."""
    BROKEN = auto()
    """A counter of the tenant is none: an admin must mend it. Nothing was booked."""


class Step(Enum):
    """What to do next with a settlement."""

    DONE = auto()
    AGAIN = auto()
    """Soon; what shares its slot waits with it."""
    APART = auto()
    """Now and then, and hold up nobody."""
    LOST = auto()
    """Give it up and say so: it may have been booked, and twice is worse."""


_ALWAYS = {
    Answer.BOOKED: Step.DONE,
    Answer.BEFORE: Step.DONE,
    Answer.UNSENT: Step.AGAIN,
    Answer.SILENT: Step.AGAIN,
    Answer.REFUSING: Step.AGAIN,
    Answer.BROKEN: Step.APART,
}
STEPS: dict[State, dict[Answer, Step]] = {
    State.ADMITTED: _ALWAYS | {Answer.MISSING: Step.LOST},
    State.UNSURE: _ALWAYS | {Answer.MISSING: Step.LOST},
    State.HELD: _ALWAYS | {Answer.MISSING: Step.LOST},
    State.UNDONE: _ALWAYS | {Answer.MISSING: Step.DONE},
    State.RETURNED: _ALWAYS | {Answer.MISSING: Step.DONE},
}
"""The next step by what the store knew and what it said."""
TOMBSTONE_S = {
    State.ADMITTED: SHORT_TOMBSTONE_S,
    State.UNSURE: LONG_TOMBSTONE_S,
    State.HELD: LONG_TOMBSTONE_S,
    State.UNDONE: LONG_TOMBSTONE_S,
    State.RETURNED: RETURNED_TOMBSTONE_S,
}
"""How long the store remembers that it booked a request: of the few that an outage met, as long as they may be held."""


def answer_of(raw: Any) -> Answer:
    """`settle.lua`'s answer, or the error in its place."""
    if isinstance(raw, ResponseError):
        return Answer.REFUSING if errors.passes(raw) else Answer.BROKEN
    if isinstance(raw, Unavailable):
        # Without a cause the breaker spoke and nothing was sent; with one the store may have booked all the same.
        return Answer.UNSENT if raw.__cause__ is None else Answer.SILENT
    return {1: Answer.BOOKED, 0: Answer.BEFORE, -1: Answer.MISSING}[int(raw)]


@dataclass(frozen=True, slots=True)
class Sold:
    """What a request was: whose key's, of which model, at which level of which tier, and how it ended.

    Attributes:
        parts: owners that have usage of their own, by their parts of its names.
        periods: in which it is booked.
        ms: milliseconds from its admission to its end.
    """

    tenant: str
    key: str
    model: str
    tier: str
    level: float
    focused: bool = False
    parts: tuple[str, ...] = ("",)
    periods: tuple[str, ...] = meters.ALWAYS

    @property
    def label(self) -> str:
        """Its name among what was sold on a day; `-` is a name that a record does not allow."""
        model = self.model if keyspace.is_model(self.model) else "-"
        tier, key = (name if keyspace.is_name(name) else "-" for name in (self.tier, self.key))
        return f"{model}:{self.level:g}:{tier}:{key}"


AMOUNTS = ("requests", "images", "tokens_in", "tokens_out", "cost")
"""What is booked of a request, by the settlement's fields."""


@dataclass(slots=True)
class Settlement:
    """What one request used in all, however often it is sent.

    Attributes:
        at: unix second of its admission, of the store's clock where that answered.
        status: how it ended. A failure of our own has no amounts, and is counted as `failed`.
        cost: micro-units of the plan's currency.
        ms: milliseconds from its admission to its end.
        reason: why its level was below what it asked for: budget, quota, busy; "" where it was not.
        sent_at: unix time at which it was first sent, 0 if never: from then on it may be booked.
    """

    sold: Sold
    id: str
    at: int
    state: State = State.ADMITTED
    requests: int = 0
    images: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: int = 0
    status: Outcome = Outcome.SERVED
    ms: int = 0
    reason: str = ""
    sent_at: float = field(default=0.0)

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.sold.tenant

    def argument(self, now: float) -> list[Any]:
        """What `settle.lua` is told of it, at unix time `now`."""
        own, stays = self.sold, TOMBSTONE_S[self.state]
        # While a tombstone would still be there, its absence says that nothing was booked.
        may_book = not self.sent_at or now - self.sent_at < stays
        if self.state in (State.UNDONE, State.RETURNED):
            return [self.id, self.at, own.model, may_book, stays, own.parts, own.periods, {}, [], "", True]
        amounts = {name: amount for name in AMOUNTS if (amount := getattr(self, name))}
        if self.status.ours and not self.requests:
            amounts["failed"] = 1
        # A project's usage is that of its tenants, whose events say it.
        event = list(self._event().values()) if keyspace.is_name(own.tenant) else []
        return [self.id, self.at, own.model, may_book, stays, own.parts, own.periods, amounts, event, own.label, False]

    def _event(self) -> dict[str, str | int]:
        own = self.sold
        return {
            "key": own.key,
            "model": own.model,
            "tier": own.tier,
            "level": f"{own.level:g}",
            "focus": int(own.focused),
            **{name: getattr(self, name) for name in AMOUNTS},
            "status": self.status.value,
            "ms": self.ms,
            "reason": self.reason,
        }

    def event_names(self) -> list[str]:
        """The names of its event's values."""
        return list(self._event())


def call(
    settlements: Sequence[Settlement], now: float, kept: Settings = DEFAULTS
) -> tuple[Sequence[str], Sequence[Any]]:
    """Keys and argument of `settle.lua` for settlements of one tenant, whose usage and events are kept so long."""
    first = settlements[0]
    asked = {
        "names": first.event_names(),
        "usage_s": kept.usage_days * DAY_S,
        "events_s": kept.events_days * DAY_S,
        "requests": [settlement.argument(now) for settlement in settlements],
    }
    return [stem(first.tenant) for stem in STEMS], (json.dumps(asked),)


STEMS = (
    keyspace.request,
    keyspace.running,
    keyspace.reserved,
    keyspace.window,
    keyspace.usage,
    keyspace.events,
)
"""The key stems of `settle.lua`; `admit.lua` has all but the last."""


def today() -> str:
    """The UTC day, `yyyy-mm-dd`."""
    return time.strftime("%Y-%m-%d", time.gmtime())
