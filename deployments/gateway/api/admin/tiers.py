"""Tiers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from deployments.gateway.api.admin.identity import Asker, Version, tagged
from deployments.gateway.api.admin.schemas import REFUSALS, After, Fields, Limit, Name, NewTier, texts
from tenants.admin import views
from tenants.admin.operators import Right
from tenants.records import keyspace
from tenants.records.hashes import parse_tier
from tenants.records.schema import RecordError

router = APIRouter(prefix="/tiers", tags=["tiers"], responses=REFUSALS)


@router.get("", summary="List tiers")
async def list_tiers(who: Asker, limit: Limit = 100, after: After = "") -> dict[str, Any]:
    """Tiers in the order of their names, a page at a time."""
    who.need(Right.READ)
    names, left = await who.admin.page(keyspace.TIER, after=after, limit=limit)
    found = (await who.admin.tiers(names)).values()
    return {
        "data": [views.broken(t) if isinstance(t, RecordError) else views.tier_fields(t) for t in found],
        "left": left,
    }


@router.post("", status_code=201, summary="Create a tier")
async def create_tier(who: Asker, body: NewTier, response: Response) -> dict[str, Any]:
    """409 where there is one of that name."""
    who.need(Right.TIERS)
    await who.admin.create_tier(body.tier, texts(body.fields))
    return await show_tier(who, body.tier, response)


@router.get("/{name}", summary="Show a tier")
async def show_tier(who: Asker, name: Name, response: Response) -> dict[str, Any]:
    """Its fields, and its version as ETag."""
    who.need(Right.READ)
    found = await who.admin.found(keyspace.tier(name))
    tagged(response, found.version)
    return views.tier_fields(parse_tier(name, found.whole))


@router.patch("/{name}", summary="Change a tier")
async def set_tier(who: Asker, name: Name, body: Fields, version: Version, response: Response) -> dict[str, Any]:
    """Field to value; null removes a field."""
    who.need(Right.TIERS)
    await who.admin.set_tier(name, texts(body), expect=version)
    return await show_tier(who, name, response)


@router.delete("/{name}", status_code=204, summary="Delete a tier")
async def delete_tier(who: Asker, name: Name, version: Version) -> None:
    """409 while a tenant is of it."""
    who.need(Right.TIERS)
    await who.admin.delete_tier(name, expect=version)
