"""What was sold, request by request: a stream of each tenant, written by the script that settles, each request once.

A tenant's stream holds its last 100,000 requests or so, none older than 35 days. An entry's `id` is its request's for
ever, so whoever imports them twice can tell.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from tenants.records import keyspace
from tenants.records.fields import iso
from tenants.records.schema import RecordError
from tenants.store.store import TenantStore

PAGE = 1000
REQUEST, ADJUSTMENT = "request", "adjustment"


@dataclass(frozen=True, slots=True)
class Event:
    """One settled request.

    Attributes:
        at: UTC, of its admission; usage is booked under this time.
        key: the API key's id.
        focus: whether the answer was steered.
        requests: 0 where it failed by our doing; nothing of it is billed then. Of a correction the amounts are what it
            adds, below 0 what it takes away.
        status: served, refused (by what it asked for), left (by its client), or late, away, failed (by our doing).
        cost: micro-units of the currency of the plan that its tenant had signed.
        ms: from its admission to its end.
        reason: why its level was below what it asked for: budget, quota, busy; "" where it was not.
        kind: `request`, or `adjustment`: a correction by an admin, booked under `at`, for the reason in `note`.
    """

    id: str
    at: str
    tenant: str
    key: str
    model: str
    tier: str
    level: float
    focus: bool
    requests: int
    images: int
    tokens_in: int
    tokens_out: int
    cost: int
    status: str
    ms: int
    reason: str
    kind: str = REQUEST
    note: str = ""


async def read_events(store: TenantStore, first: date, last: date, tenants: Sequence[str] = ()) -> AsyncIterator[Event]:
    """The requests that were admitted from the UTC day `first` to `last`, both included, tenant by tenant.

    Args:
        tenants: of these; none is of all that have any, deleted ones too.

    Raises:
        RecordError: an entry is no event.
        Unavailable: the store is away.
    """
    keys = [keyspace.events(tenant) for tenant in tenants]
    keys = keys or sorted({key async for key in store.scan(keyspace.EVENTS)})
    begins = datetime.combine(first, time(), UTC).timestamp()
    ends = datetime.combine(last + timedelta(days=1), time(), UTC).timestamp()
    for key in keys:
        # Settled later than admitted, so that none is missed; those of an outage by days.
        cursor = f"{round(begins * 1000)}-0"
        while page := await store.execute("XRANGE", key, cursor, "+", "COUNT", PAGE):
            for name, raw in page:
                fields = _fields(raw)
                event, at = _event(key, name.decode(), fields)
                if begins <= at < ends:
                    yield event
            cursor = f"({page[-1][0].decode()}"


async def read_new(
    store: TenantStore, seen: Mapping[str, str], tenants: Sequence[str] = ()
) -> AsyncIterator[tuple[str, Event]]:
    """What was entered behind the places that were seen of each tenant's stream, each with its place.

    Whoever keeps the places of what he has taken gets every event, late ones and corrections too, and each once.

    Args:
        seen: the place up to which a tenant's stream was taken; absent: nothing was.
        tenants: as of `read_events`.

    Raises:
        RecordError: an entry is no event.
        Unavailable: the store is away.
    """
    keys = [keyspace.events(tenant) for tenant in tenants]
    for key in keys or sorted({key async for key in store.scan(keyspace.EVENTS)}):
        cursor = f"({place}" if (place := seen.get(keyspace.tenant_of_events(key))) else "-"
        while page := await store.execute("XRANGE", key, cursor, "+", "COUNT", PAGE):
            for name, raw in page:
                yield name.decode(), _event(key, name.decode(), _fields(raw))[0]
            cursor = f"({page[-1][0].decode()}"


def _fields(raw: Any) -> dict[str, str]:
    pairs = raw.items() if isinstance(raw, Mapping) else zip(raw[::2], raw[1::2], strict=True)
    return {
        name.decode("utf-8", "backslashreplace"): value.decode("utf-8", "backslashreplace") for name, value in pairs
    }


def _event(key: str, name: str, fields: Mapping[str, str]) -> tuple[Event, float]:
    try:
        at = float(fields["at"])
        event = Event(
            id=fields["id"],
            at=iso(at),
            tenant=keyspace.tenant_of_events(key),
            key=fields["key"],
            model=fields["model"],
            tier=fields["tier"],
            level=float(fields["level"]),
            focus=fields["focus"] == "1",
            requests=int(fields["requests"]),
            images=int(fields["images"]),
            tokens_in=int(fields["tokens_in"]),
            tokens_out=int(fields["tokens_out"]),
            cost=int(fields.get("cost", 0)),  # those of before there was money have none
            status=fields["status"],
            ms=int(fields["ms"]),
            reason=fields.get("reason", ""),
            kind=fields.get("kind", REQUEST),
            note=fields.get("note", ""),
        )
    except (KeyError, ValueError, OverflowError):
        raise RecordError(key, name, "is no event") from None
    return event, at
