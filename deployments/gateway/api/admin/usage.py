"""What tenants have used: shown, exported, corrected, erased."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from deployments.gateway.api.admin.identity import Asker, Version
from deployments.gateway.api.admin.schemas import REFUSALS, Name
from policies.errors import InvalidRequest
from tenants.admin.corrections import Corrections, What
from tenants.admin.operators import Right
from tenants.changes import edits
from tenants.metering.events import read_events
from tenants.metering.formats import cloud_event
from tenants.metering.settlement import AMOUNTS
from tenants.metering.usage import asked_days, read_usage
from tenants.records import keyspace

router = APIRouter(tags=["usage"], responses=REFUSALS)
MOST_DAYS = 4000
"""Of one question."""
MOST_EXPORTED = 400
"""Days of one export."""


class Correction(BaseModel):
    """What is corrected, and why."""

    model_config = ConfigDict(extra="forbid")

    day: date = Field(description="UTC.")
    model: str = Field(max_length=200)
    level: str = Field(max_length=10, examples=["0.9"])
    tier: str = Field(default="-", max_length=64)
    key: str = Field(default="-", max_length=64, description="Id of the API key.")
    amounts: dict[str, int] = Field(
        description=f"Of {', '.join(AMOUNTS)}; below 0 takes away.", examples=[{"requests": -1, "tokens_out": -90}]
    )
    why: str = Field(max_length=500)
    id: str = Field(default="", max_length=24, description="Of one whose answer was lost: booked unless it was.")


@router.get("/usage/export", summary="Every request of a time", response_class=Response)
async def export(
    who: Asker,
    first: Annotated[date, Query(alias="from", description="First UTC day.")],
    last: Annotated[date | None, Query(alias="to", description="Last UTC day; default: today.")] = None,
    tenant: Annotated[list[str] | None, Query(max_length=1000, description="Of these; none: of all.")] = None,
    form: Annotated[
        Literal["jsonl", "cloudevents"], Query(alias="format", description="An object a line, either way.")
    ] = "jsonl",
    source: Annotated[str, Query(min_length=1, max_length=200, description="Of CloudEvents.")] = "aim-serve",
) -> StreamingResponse:
    """Each once, corrections too; an id never changes."""
    who.need(Right.READ)
    _days(first, last, 1, MOST_EXPORTED)
    if wrong := [name for name in tenant or () if not keyspace.is_name(name)]:
        raise InvalidRequest(f"'{wrong[0]}' is no tenant's id.", param="tenant")
    events = read_events(who.store, first, last or datetime.now(UTC).date(), tenant or ())
    # The first is read before the answer begins: what fails then is an error, and no answer cut short.
    ahead = [event async for event in _first(events)]

    async def lines() -> AsyncIterator[bytes]:
        for event in ahead:
            yield line(event)
        async for event in events:
            yield line(event)

    def line(event: Any) -> bytes:
        fields = cloud_event(event, source) if form == "cloudevents" else asdict(event)
        return json.dumps(fields).encode() + b"\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.get("/tenants/{name}/usage", summary="What a tenant has used")
async def usage(
    who: Asker,
    name: Name,
    first: Annotated[date | None, Query(alias="from", description="First UTC day.")] = None,
    last: Annotated[date | None, Query(alias="to", description="Last UTC day; default: today.")] = None,
    days: Annotated[int, Query(ge=1, le=400, description="How many days back, without `from`.")] = 7,
    month: Annotated[str, Query(pattern=r"^(\d{4}-(0[1-9]|1[0-2]))?$", description="A month's total instead.")] = "",
    key: Annotated[str, Query(pattern=r"^[0-9a-f]{0,64}$", description="Only what this key used.")] = "",
) -> list[dict[str, Any]]:
    """By UTC day and model, and of each day by level, tier and key."""
    who.need(Right.READ)
    periods = [month] if month else _days(first, last, days, MOST_DAYS)
    found = await read_usage(who.store, name, *periods, key_id=key)
    if not any(any(period.total.values()) for period in found):
        await who.admin.found(keyspace.tenant(name))  # a tenant that is gone may still have used something
    return [asdict(period) for period in found]


@router.post("/tenants/{name}/usage/adjust", status_code=201, summary="Correct usage")
async def adjust(who: Asker, name: Name, body: Correction) -> dict[str, Any]:
    """An audited entry, and an event of its own kind; 409 where there is less than is taken away."""
    who.need(Right.USAGE)
    what = What(name, body.day, body.model, body.level, body.tier, body.key)
    told, booked = await Corrections(who.store, who.admin).adjust(what, body.amounts, body.why, number=body.id)
    return {"id": told, "booked": booked}


@router.post("/tenants/{name}/erase", summary="Erase a tenant")
async def erase(who: Asker, name: Name, version: Version) -> dict[str, Any]:
    """Its record, keys, usage and events, for good; the audit log stays. `If-Match: *` where its record is gone."""
    who.need(Right.TENANTS, Right.KEYS, Right.USAGE)
    edits.expect(await edits.read(who.store, keyspace.tenant(name)), version, f"Tenant '{name}'")
    return {"erased": name, **await Corrections(who.store, who.admin).erase(name)}


async def _first(events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for event in events:
        yield event
        return


def _days(first: date | None, last: date | None, days: int, most: int) -> list[str]:
    try:
        return asked_days(first, last, days, most=most)
    except ValueError as error:
        raise InvalidRequest(f"{error}", param="from") from None
