"""What a tenant has used, by day, month and model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from tenants import keyspace
from tenants.records import RecordError
from tenants.store import TenantStore

COUNTERS = ("requests", "images", "tokens_in", "tokens_out", "rejected", "tokens_reserved")
"""`tokens_reserved` belongs to requests that still run, or whose process died before it settled them."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Counters of one period (`yyyy-mm-dd` or `yyyy-mm`, UTC), in all and by model."""

    period: str
    total: Mapping[str, int]
    by_model: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


async def read_usage(store: TenantStore, tenant: str, *periods: str, key_id: str = "") -> list[Usage]:
    """Usage of a tenant in each of `periods`, `yyyy-mm-dd` or `yyyy-mm`; zeros where there is none.

    Args:
        key_id: only what this API key used; counted for keys that have limits of their own.

    Raises:
        RecordError: a counter is not a number.
        Unavailable: the store is away.
    """
    keys = [keyspace.usage_period(tenant, period, key_id) for period in periods]
    answers = await store.hashes(*keys)
    return [_parse(key, period, raw) for key, period, raw in zip(keys, periods, answers, strict=True)]


async def read_days(store: TenantStore, tenant: str, days: int, *, until: date | None = None) -> list[Usage]:
    """Usage of the last `days` UTC days, the newest first. Raises as `read_usage`."""
    return await read_usage(store, tenant, *last_days(days, until))


def last_days(days: int, until: date | None = None) -> list[str]:
    """The last `days` UTC days up to `until` (today), the newest first."""
    last = until or datetime.now(UTC).date()
    return [(last - timedelta(days=i)).isoformat() for i in range(days)]


def days_between(first: date, last: date | None = None) -> list[str]:
    """The UTC days from `first` to `last` (today), both included, the newest first; none where they are reversed."""
    return last_days(((last or datetime.now(UTC).date()) - first).days + 1, last)


def _parse(key: str, period: str, raw: Mapping[bytes, bytes]) -> Usage:
    total = dict.fromkeys(COUNTERS, 0)
    by_model: dict[str, dict[str, int]] = {}
    for name, value in raw.items():
        label = name.decode("utf-8", "backslashreplace")
        counter, _, model = label.partition(":")
        try:
            amount = int(value)
        except ValueError:
            raise RecordError(key, label, "is not a number") from None
        if counter in COUNTERS:
            (by_model.setdefault(model, dict.fromkeys(COUNTERS, 0)) if model else total)[counter] = amount
    return Usage(period, total, by_model)
