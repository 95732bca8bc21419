"""Meters: what a request uses, whose limits that counts against, and in which period. A limit is data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from tenants.live.entitlements import Entitlements
from tenants.records.schema import LimitFields

MINUTE_S = 60


class Counter(StrEnum):
    """What is counted."""

    REQUESTS = "requests"
    IMAGES = "images"
    TOKENS = "tokens"
    COST = "cost"
    """In micro-units of the plan's currency."""
    RUNNING = "running"


NOW, MINUTE, HOUR, DAY, MONTH = "now", "minute", "hour", "day", "month"
"""Periods: at a time, any 60 seconds, and UTC's hours, days and months. `month@17` is a month from its 17th day on."""
ALWAYS = (DAY, MONTH)
"""The periods in which usage is kept, whatever is limited."""

FIELDS: Mapping[str, tuple[Counter, str]] = {
    "rpm": (Counter.REQUESTS, MINUTE),
    "tpm": (Counter.TOKENS, MINUTE),
    "concurrency": (Counter.RUNNING, NOW),
    **{
        f"quota_{counter.value}_{period}": (counter, period)
        for counter in (Counter.REQUESTS, Counter.IMAGES, Counter.TOKENS)
        for period in (HOUR, DAY, MONTH)
    },
    "budget_day": (Counter.COST, DAY),
    "budget_month": (Counter.COST, MONTH),
}
"""The limits of a record, by its fields."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose limits these are: a tenant's, or those of one of its keys or of a model, each within the tenant.

    A project will be one more kind.
    """

    kind: str = "tenant"
    name: str = ""

    @property
    def part(self) -> str:
        """Its part of the names of its counters."""
        return f":{self.kind}:{self.name}" if self.name else ""

    @property
    def suffix(self) -> str:
        """Of its fields in its tenant's usage, which has every model's; a key that has limits has usage of its own."""
        return f":{self.name}" if self.kind == "model" else ""


TENANT = Owner()


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `most` of a counter in a period; `field` is the record's."""

    owner: Owner
    counter: Counter
    period: str
    most: int
    field: str

    @property
    def is_rate(self) -> bool:
        """Whether it is of a minute or of a moment; quotas and budgets are of longer periods."""
        return self.period in (NOW, MINUTE)


@dataclass(frozen=True, slots=True)
class Meter:
    """So much of a counter; where that is not left, as much as is, down to `least`."""

    counter: Counter
    amount: int
    least: int


def limits_of(entitlements: Entitlements, model: str = "") -> tuple[Limit, ...]:
    """All limits that a request of a model must keep: its tenant's, its key's own, and those of the model."""
    own = entitlements
    if own.key_limits is None and not own.model_limits:
        return _limits(TENANT, own.limits, own.limits.billing_day)
    groups: list[tuple[Owner, LimitFields]] = [(TENANT, own.limits)]
    if own.key_limits is not None:
        groups.append((Owner("key", own.key_id), own.key_limits))
    if model in own.model_limits:
        groups.append((Owner("model", model), own.model_limits[model]))
    return tuple(limit for owner, fields in groups for limit in _limits(owner, fields, own.limits.billing_day))


@lru_cache(maxsize=4096)
def _limits(owner: Owner, fields: LimitFields, billing_day: int) -> tuple[Limit, ...]:
    found = []
    for field, (counter, period) in FIELDS.items():
        most = getattr(fields, field)
        if most is not None:
            if period == MONTH and billing_day != 1:
                period = f"{MONTH}@{billing_day}"
            found.append(Limit(owner, counter, period, most, field))
    return tuple(found)


def owners(limits: Iterable[Limit]) -> list[Owner]:
    """The tenant, and everyone else who has a limit."""
    return list(dict.fromkeys([TENANT, *(limit.owner for limit in limits)]))


def parts(limits: Iterable[Limit]) -> list[str]:
    """The owners that have usage of their own, by their parts of its names."""
    return [owner.part for owner in owners(limits) if not owner.suffix]


def periods(limits: Iterable[Limit]) -> list[str]:
    """The periods in which what a request uses is to be booked."""
    return list(dict.fromkeys([*ALWAYS, *(limit.period for limit in limits if limit.period not in (NOW, MINUTE))]))
