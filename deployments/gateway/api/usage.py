"""What a key's own tenant has used, by day, model and level."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from deployments.gateway.api.dependencies import KEY_REQUIRED, Context, Gateway, KeyedRoute
from deployments.gateway.api.schemas import ERRORS
from policies.errors import InvalidRequest, NotEntitled
from tenants.metering.usage import Usage, asked_days

MOST_DAYS = 92
"""Each day is two reads of the store."""
router = APIRouter(tags=["usage"], dependencies=KEY_REQUIRED, route_class=KeyedRoute, responses=ERRORS)


class Counts(BaseModel):
    """What was counted. Only what was served is billed: neither `failed` nor `rejected` is in the others."""

    requests: int = Field(description="Requests that were served.")
    images: int = Field(description="Pictures.")
    tokens_in: int = Field(description="Tokens of prompts.")
    tokens_out: int = Field(description="Tokens of answers.")
    cost: int | None = Field(default=None, description="Millionths of the currency; null: this key is not shown costs.")
    failed: int = Field(description="Requests that this service failed at (408, 500, 503): free.")
    rejected: int = Field(description="Requests beyond a limit (429): free.")


class Sold(BaseModel):
    """What was settled of one model at one level."""

    model: str = Field(description="Model id.")
    level: float = Field(description="The level that the answers were given at.")
    tier: str = Field(description="The tier at that time.")
    key: str = Field(description="Id of the API key.")
    counts: Counts = Field(description="Of these; `rejected` is known of the model alone, and 0 here.")


class Day(BaseModel):
    """One UTC day."""

    day: date = Field(description="UTC.")
    total: Counts = Field(description="Of all models.")
    by_model: dict[str, Counts] = Field(description="By model id.")
    sold: list[Sold] = Field(description="By model, level, tier and key.")


class UsageView(BaseModel):
    """Answer of GET /v1/usage."""

    object: Literal["usage"] = Field(default="usage", description="Always `usage`.")
    tenant: str = Field(description="Tenant id: always the key's own.")
    total: Counts = Field(description="Of all the days below.")
    data: list[Day] = Field(description="The days, the newest first; those without any use too.")


@router.get("/v1/usage", response_model=UsageView, summary="What this key's tenant has used")
async def usage(
    gateway: Gateway,
    context: Context,
    first: Annotated[date | None, Query(alias="from", description="First UTC day, 2030-01-31.")] = None,
    last: Annotated[date | None, Query(alias="to", description="Last UTC day; default: today.")] = None,
    days: Annotated[int, Query(ge=1, le=MOST_DAYS, description="How many days back, without `from`.")] = 7,
) -> UsageView:
    """By UTC day, model and level, of all the tenant's keys. A key with scopes needs `usage` among them."""
    own = context.caller
    if not own.may_read_usage():
        raise NotEntitled("This key's scopes do not include usage.", code="scope_not_entitled")
    try:
        periods = asked_days(first, last, days, most=MOST_DAYS)
    except ValueError as error:
        raise InvalidRequest(f"{error}", param="from") from None
    found = await gateway.admission.usage(own.tenant, *periods)
    total = {name: sum(day.total[name] for day in found) for name in Counts.model_fields}
    shown = [_day(day, own.show_cost) for day in found]
    return UsageView(tenant=own.tenant, total=_counts(total, own.show_cost), data=shown)


def _day(own: Usage, cost: bool) -> Day:
    sold = [
        Sold(model=s.model, level=float(s.level), tier=s.tier, key=s.key, counts=_counts(s.counts, cost))
        for s in own.sold
    ]
    by_model = {model: _counts(counts, cost) for model, counts in sorted(own.by_model.items())}
    return Day(day=date.fromisoformat(own.period), total=_counts(own.total, cost), by_model=by_model, sold=sold)


def _counts(counts: Mapping[str, int], cost: bool) -> Counts:
    return Counts(**{name: counts[name] for name in Counts.model_fields if cost or name != "cost"})
