"""Tenants and their standing focus."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from deployments.gateway.api.admin.identity import Asker, Version, tagged
from deployments.gateway.api.admin.schemas import NAME, REFUSALS, After, Fields, Limit, Name, NewTenant, texts
from tenants.admin import views
from tenants.admin.operators import Right
from tenants.records import keyspace, schedule
from tenants.records.hashes import parse_tenant
from tenants.records.schema import RecordError

router = APIRouter(prefix="/tenants", tags=["tenants"], responses=REFUSALS)
Model = Annotated[str, Path(pattern=NAME, description="Model id.")]


def rights_of(fields: Fields) -> set[Right]:
    """What somebody must be entitled to who changes these fields of a tenant."""
    rights = {"status": Right.STATUS, "focus_locked": Right.FOCUS}
    names = {schedule.subject(name) for name in fields}  # what is to come is changed by the same right
    return {Right.FOCUS if name.startswith("focus:") else rights.get(name, Right.TENANTS) for name in names}


@router.get("", summary="List tenants")
async def list_tenants(who: Asker, limit: Limit = 100, after: After = "") -> dict[str, Any]:
    """Tenants in the order of their ids, a page at a time."""
    who.need(Right.READ)
    ids, left = await who.admin.page(keyspace.TENANT, after=after, limit=limit)
    found = (await who.admin.tenants(ids)).values()
    shown = [views.broken(t) if isinstance(t, RecordError) else views.tenant_fields(t) for t in found]
    return {"data": shown, "left": left}


@router.post("", status_code=201, summary="Create a tenant")
async def create_tenant(who: Asker, body: NewTenant, response: Response) -> dict[str, Any]:
    """409 where there is one of that id, or was, whose usage is kept."""
    who.need(Right.TENANTS, *rights_of(body.fields))
    await who.admin.create_tenant(body.id, tier=body.tier, name=body.name, fields=texts(body.fields), reuse=body.reuse)
    return await show_tenant(who, body.id, response)


@router.get("/{name}", summary="Show a tenant")
async def show_tenant(who: Asker, name: Name, response: Response) -> dict[str, Any]:
    """Its fields, and its version as ETag."""
    who.need(Right.READ)
    found = await who.admin.found(keyspace.tenant(name))
    tagged(response, found.version)
    return views.tenant_fields(parse_tenant(name, found.whole))


@router.patch("/{name}", summary="Change a tenant")
async def set_tenant(who: Asker, name: Name, body: Fields, version: Version, response: Response) -> dict[str, Any]:
    """Field to value; null removes a field. A tier's field is an override."""
    who.need(*(rights_of(body) or {Right.TENANTS}))
    await who.admin.set_tenant(name, texts(body), expect=version)
    return await show_tenant(who, name, response)


@router.delete("/{name}", summary="Delete a tenant")
async def delete_tenant(who: Asker, name: Name, version: Version) -> dict[str, Any]:
    """With its keys. Its usage stays."""
    who.need(Right.TENANTS, Right.KEYS)
    return {"deleted": name, "keys": await who.admin.delete_tenant(name, expect=version)}


@router.post("/{name}/suspend", summary="Suspend a tenant")
async def suspend(who: Asker, name: Name, response: Response) -> dict[str, Any]:
    """Every request of it is refused from now on."""
    who.need(Right.STATUS)
    await who.admin.set_tenant(name, {"status": "suspended"})
    return await show_tenant(who, name, response)


@router.post("/{name}/activate", summary="Activate a tenant")
async def activate(who: Asker, name: Name, response: Response) -> dict[str, Any]:
    """Its requests are taken again."""
    who.need(Right.STATUS)
    await who.admin.set_tenant(name, {"status": "active"})
    return await show_tenant(who, name, response)


@router.get("/{name}/focus/{model}", summary="Show the standing focus on a model")
async def show_focus(who: Asker, name: Name, model: Model, response: Response) -> dict[str, float]:
    """Strength by class or term."""
    who.need(Right.READ)
    found = await who.admin.found(keyspace.tenant(name))
    tagged(response, found.version)
    return dict(parse_tenant(name, found.whole).standing_focus.get(model, {}))


@router.patch("/{name}/focus/{model}", summary="Set the standing focus on a model")
async def set_focus(
    who: Asker, name: Name, model: Model, body: dict[str, float], version: Version, response: Response
) -> dict[str, float]:
    """Strengths in (-1, 1) by class or term; 0 removes one."""
    who.need(Right.FOCUS)
    await who.admin.set_focus(name, model, body, expect=version)
    return await show_focus(who, name, model, response)
