"""Meters: what a request uses, whose limits that counts against, and in which period. A limit is data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import NamedTuple

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


class Meter(NamedTuple):
    """So much of a counter; where that is not left, as much as is, down to `least`."""

    counter: Counter
    amount: int
    least: int


class HeldTo(tuple[Limit, ...]):
    """All limits that a request must keep, with what follows from them, which is worked out once."""

    @cached_property
    def owners(self) -> tuple[Owner, ...]:
        """The tenant, and everyone else who has a limit."""
        return tuple(dict.fromkeys([TENANT, *(limit.owner for limit in self)]))

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The owners that have usage of their own, by their parts of its names."""
        return tuple(owner.part for owner in self.owners if not owner.suffix)

    @cached_property
    def periods(self) -> tuple[str, ...]:
        """The periods in which what a request uses is to be booked."""
        return tuple(dict.fromkeys([*ALWAYS, *(limit.period for limit in self if not limit.is_rate)]))

    @cached_property
    def running(self) -> bool:
        """Whether one of them is of requests at a time."""
        return any(limit.counter is Counter.RUNNING for limit in self)

    @cached_property
    def argument(self) -> str:
        """Owners and limits as a part of `admit.lua`'s argument."""
        of_limits = [(self.owners.index(own.owner) + 1, own.counter, own.period, own.most) for own in self]
        of_owners = [(owner.part, owner.suffix) for owner in self.owners]
        return f'"owners":{json.dumps(of_owners)},"limits":{json.dumps(of_limits)}'


MOST_KNOWN = 4096
_known: dict[tuple[int, str], tuple[Entitlements, HeldTo]] = {}


def limits_of(entitlements: Entitlements, model: str = "") -> HeldTo:
    """All limits that a request of a model must keep: its tenant's, its key's own, and those of the model."""
    # By identity, which an entry's own reference keeps: to hash all fields of one costs more than to ask the store.
    key = (id(entitlements), model if entitlements.model_limits else "")
    known = _known.get(key)
    if known is None:
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        known = _known[key] = (entitlements, _limits_of(entitlements, model))
    return known[1]


def _limits_of(own: Entitlements, model: str) -> HeldTo:
    if own.key_limits is None and not own.model_limits:
        return _limits(TENANT, own.limits, own.limits.billing_day)
    groups: list[tuple[Owner, LimitFields]] = [(TENANT, own.limits)]
    if own.key_limits is not None:
        groups.append((Owner("key", own.key_id), own.key_limits))
    if model in own.model_limits:
        groups.append((Owner("model", model), own.model_limits[model]))
    return HeldTo(limit for owner, fields in groups for limit in _limits(owner, fields, own.limits.billing_day))


@lru_cache(maxsize=4096)
def _limits(owner: Owner, fields: LimitFields, billing_day: int) -> HeldTo:
    found = []
    for field, (counter, period) in FIELDS.items():
        most = getattr(fields, field)
        if most is not None:
            if period == MONTH and billing_day != 1:
                period = f"{MONTH}@{billing_day}"
            found.append(Limit(owner, counter, period, most, field))
    return HeldTo(found)
