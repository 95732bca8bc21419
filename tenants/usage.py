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


async def read_usage(store: TenantStore, tenant: str, *periods: str) -> list[Usage]:
    """Usage of a tenant in each of `periods`, `yyyy-mm-dd` or `yyyy-mm`; zeros where there is none.

    Raises:
        RecordError: a counter is not a number.
        Unavailable: the store is away.
    """
    keys = [keyspace.usage_period(tenant, period) for period in periods]
    answers = await store.hashes(*keys)
    return [_parse(key, period, raw) for key, period, raw in zip(keys, periods, answers, strict=True)]


async def read_days(store: TenantStore, tenant: str, days: int, *, until: date | None = None) -> list[Usage]:
    """Usage of the last `days` UTC days, the newest first. Raises as `read_usage`."""
    last = until or datetime.now(UTC).date()
    return await read_usage(store, tenant, *((last - timedelta(days=i)).isoformat() for i in range(days)))


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
