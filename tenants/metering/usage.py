"""What a tenant has used, by day and month, by model, and by what was sold: model, level, tier and key."""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from tenants.records import keyspace
from tenants.records.schema import RecordError
from tenants.store.store import TenantStore

COUNTERS = ("requests", "images", "tokens_in", "tokens_out", "cost", "rejected", "failed", "tokens_reserved")
"""`rejected` are requests beyond a limit, `failed` those that we failed at: neither is in `requests`, nor billed.
`cost` is in micro-units of the plan's currency. `tokens_reserved` belongs to requests that still run, or whose process
died and whose lease has not run out yet."""


@dataclass(frozen=True, slots=True)
class SoldUsage:
    """What was settled of one model at one level, by tier and key."""

    model: str
    level: str
    tier: str
    key: str
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Usage:
    """Counters of one period (`yyyy-mm-dd` or `yyyy-mm`, UTC), in all, by model, and by what was sold."""

    period: str
    total: Mapping[str, int]
    by_model: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    sold: tuple[SoldUsage, ...] = ()


async def read_usage(store: TenantStore, tenant: str, *periods: str, key_id: str = "") -> list[Usage]:
    """Usage of a tenant in each of `periods`, `yyyy-mm-dd` or `yyyy-mm`; zeros where there is none.

    Args:
        key_id: only what this API key used; counted for keys that have limits of their own.

    Raises:
        RecordError: a counter is not a number.
        Unavailable: the store is away.
    """
    keys = [keyspace.usage_period(tenant, period, key_id) for period in periods]
    days = {period: [] if key_id else _days_of(period) for period in periods}
    sold = [keyspace.sold(tenant, day) for period in periods for day in days[period]]
    reserved = keyspace.reserved(tenant, key_id)
    answers = dict(zip([reserved, *keys, *sold], await store.hashes(reserved, *keys, *sold), strict=True))
    now = datetime.now(UTC).strftime("%Y-%m-%d")
    return [
        _parse(
            period,
            (key, answers[key]),
            [(name, answers[name]) for name in (keyspace.sold(tenant, day) for day in days[period])],
            (reserved, answers[reserved] if now.startswith(period) else {}),
        )
        for key, period in zip(keys, periods, strict=True)
    ]


def _days_of(period: str) -> list[str]:
    """The days of a period."""
    if len(period) != len("yyyy-mm"):
        return [period]
    year, month = map(int, period.split("-"))
    return [f"{period}-{day:02d}" for day in range(1, monthrange(year, month)[1] + 1)]


async def read_days(store: TenantStore, tenant: str, days: int, *, until: date | None = None) -> list[Usage]:
    """Usage of the last `days` UTC days, the newest first. Raises as `read_usage`."""
    return await read_usage(store, tenant, *last_days(days, until))


def last_days(days: int, until: date | None = None) -> list[str]:
    """The last `days` UTC days up to `until` (today), the newest first."""
    last = until or datetime.now(UTC).date()
    return [(last - timedelta(days=i)).isoformat() for i in range(days)]


def asked_days(first: date | None, last: date | None, days: int, *, most: int) -> list[str]:
    """The UTC days that somebody asks for by `from`, `to` and how many, the newest first.

    Raises:
        ValueError: they are reversed, out of reach, or more than `most`; in words for who asked.
    """
    if any(day is not None and not 1970 <= day.year <= 9000 for day in (first, last)):
        raise ValueError("`from` and `to` must lie between the years 1970 and 9000.")
    last = last or datetime.now(UTC).date()
    days = (last - first).days + 1 if first else days
    if not 1 <= days <= most:
        raise ValueError(f"`from` must not be after `to`, nor more than {most} days before it.")
    return last_days(days, last)


async def read_spent(store: TenantStore, tenant: str, billing_day: int = 1) -> tuple[int, int]:
    """Micro-units that a tenant's settled requests cost today, and in the month that began on its billing day, UTC."""
    today = datetime.now(UTC).date()
    month = today if today.day >= billing_day else today.replace(day=1) - timedelta(days=1)
    first = month.replace(day=billing_day)
    days = last_days((today - first).days + 1, today)
    keys = [keyspace.usage_period(tenant, day) for day in days]
    costs = [dict(_numbers(*day)).get("cost", 0) for day in zip(keys, await store.hashes(*keys), strict=True)]
    return costs[0], sum(costs)


_LEVEL = re.compile(r"[01](\.\d{1,6})?")
Named = tuple[str, Mapping[bytes, bytes]]
"""A Redis key and its hash."""


def _parse(period: str, usage: Named, sold: Iterable[Named], reserved: Named) -> Usage:
    total = dict.fromkeys(COUNTERS, 0)
    by_model: dict[str, dict[str, int]] = {}
    for label, amount in _numbers(*usage):
        counter, _, model = label.partition(":")
        if counter in COUNTERS and counter != "tokens_reserved":
            (by_model.setdefault(model, dict.fromkeys(COUNTERS, 0)) if model else total)[counter] = amount
    total["tokens_reserved"] = dict(_numbers(*reserved)).get("tokens", 0)
    found: dict[tuple[str, str, str, str], dict[str, int]] = {}
    for named in sold:
        for label, amount in _numbers(*named):
            match label.split(":"):
                case [counter, model, level, tier, own_key] if counter in COUNTERS:
                    if not _LEVEL.fullmatch(level):
                        raise RecordError(named[0], label, "names no level")
                    counts = found.setdefault((model, level, tier, own_key), dict.fromkeys(COUNTERS, 0))
                    counts[counter] += amount
    return Usage(period, total, by_model, tuple(SoldUsage(*what, counts) for what, counts in sorted(found.items())))


def _numbers(key: str, raw: Mapping[bytes, bytes]) -> Iterator[tuple[str, int]]:
    for name, value in raw.items():
        label = name.decode("utf-8", "backslashreplace")
        try:
            yield label, int(value)
        except ValueError:
            raise RecordError(key, label, "is not a number") from None
