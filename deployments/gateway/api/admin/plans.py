"""Price lists, version by version."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict, Field

from deployments.gateway.api.admin.identity import Asker, Version, tagged
from deployments.gateway.api.admin.schemas import NAME, REFUSALS, After, Fields, Limit, Name, texts
from tenants.admin import views
from tenants.admin.operators import Right
from tenants.records import keyspace
from tenants.records.prices import parse_plan
from tenants.records.schema import RecordError

router = APIRouter(prefix="/plans", tags=["plans"], responses=REFUSALS)
Reference = Annotated[
    str, Path(pattern=NAME[:-1] + "(@[1-9][0-9]{0,5})?$", description="A version; without @N the newest.")
]


class NewPrices(BaseModel):
    """The first version of a plan."""

    model_config = ConfigDict(extra="forbid")

    plan: str = Field(pattern=NAME)
    fields: Fields = Field(
        description="Micro-units by `<unit>[:<model>[:<level>]]`, and `currency`; docs/entitlements.md.",
        examples=[{"currency": "EUR", "image": 1500, "image:resnet18-cifar10:0.7": 500}],
    )


class Move(BaseModel):
    """Who signs a version."""

    model_config = ConfigDict(extra="forbid")

    tenants: list[Annotated[str, Field(pattern=NAME)]] = Field(max_length=10_000)


@router.get("", summary="List plans")
async def list_plans(who: Asker, limit: Limit = 100, after: After = "") -> dict[str, Any]:
    """Every version of every plan, in the order of their names, a page at a time."""
    who.need(Right.READ)
    names, left = await who.admin.page(keyspace.PLAN, after=after, limit=limit)
    found = (await who.admin.plans(names)).values()
    return {
        "data": [views.broken(p) if isinstance(p, RecordError) else views.plan_fields(p) for p in found],
        "left": left,
    }


@router.post("", status_code=201, summary="Create a plan")
async def create_plan(who: Asker, body: NewPrices, response: Response) -> dict[str, Any]:
    """Its first version; 409 where there is one."""
    who.need(Right.TIERS)
    return await show_plan(who, (await who.admin.create_plan(f"{body.plan}@1", texts(body.fields))).reference, response)


@router.get("/{plan}", summary="Show a version of a plan")
async def show_plan(who: Asker, plan: Reference, response: Response) -> dict[str, Any]:
    """Its prices, and its version as ETag."""
    who.need(Right.READ)
    version = await who.admin.plan_version(plan)
    found = await who.admin.found(keyspace.plan(version))
    tagged(response, found.version)
    return views.plan_fields(parse_plan(version, found.whole))


@router.patch("/{name}", summary="Make the next version of a plan")
async def set_prices(who: Asker, name: Name, body: Fields, version: Version, response: Response) -> dict[str, Any]:
    """Field to value, null removes one; If-Match is of the newest version. Nobody is moved to the new one."""
    who.need(Right.TIERS)
    return await show_plan(who, (await who.admin.set_prices(name, texts(body), expect=version)).reference, response)


@router.post("/{plan}/move", summary="Have tenants sign a version of a plan")
async def move(who: Asker, plan: Reference, body: Move) -> dict[str, Any]:
    """What they have had so far is billed by what they had."""
    who.need(Right.TENANTS)
    return {"plan": await who.admin.move_plan(body.tenants, plan), "tenants": body.tenants}


@router.delete("/{plan}", status_code=204, summary="Delete a version of a plan")
async def delete_plan(who: Asker, plan: Reference, version: Version) -> None:
    """409 while a tier or a tenant has it."""
    who.need(Right.TIERS)
    await who.admin.delete_plan(plan, expect=version)
