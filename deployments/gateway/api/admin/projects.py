"""Projects: limits that several tenants and keys share."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from deployments.gateway.api.admin.identity import Asker, Version, tagged
from deployments.gateway.api.admin.schemas import NAME, REFUSALS, After, Fields, Limit, Name, texts
from tenants.admin import views
from tenants.admin.operators import Right
from tenants.records import keyspace
from tenants.records.hashes import parse_project
from tenants.records.schema import RecordError

router = APIRouter(prefix="/projects", tags=["projects"], responses=REFUSALS)


class NewProject(BaseModel):
    """A project to be made."""

    model_config = ConfigDict(extra="forbid")

    project: str = Field(pattern=NAME)
    fields: Fields = Field(default_factory=dict, description="Limits, and billing_day.", examples=[{"rpm": 600}])


@router.get("", summary="List projects")
async def list_projects(who: Asker, limit: Limit = 100, after: After = "") -> dict[str, Any]:
    """In the order of their ids, a page at a time."""
    who.need(Right.READ)
    names, left = await who.admin.page(keyspace.PROJECT, after=after, limit=limit)
    found = (await who.admin.projects(names)).values()
    shown = [views.broken(p) if isinstance(p, RecordError) else views.project_fields(p) for p in found]
    return {"data": shown, "left": left}


@router.post("", status_code=201, summary="Create a project")
async def create_project(who: Asker, body: NewProject, response: Response) -> dict[str, Any]:
    """409 where there is one of that id. Tenants and keys name it in their field `project`."""
    who.need(Right.TENANTS)
    await who.admin.create_project(body.project, texts(body.fields))
    return await show_project(who, body.project, response)


@router.get("/{name}", summary="Show a project")
async def show_project(who: Asker, name: Name, response: Response) -> dict[str, Any]:
    """Its fields, and its version as ETag."""
    who.need(Right.READ)
    found = await who.admin.found(keyspace.project(name))
    tagged(response, found.version)
    return views.project_fields(parse_project(name, found.whole))


@router.patch("/{name}", summary="Change a project")
async def set_project(who: Asker, name: Name, body: Fields, version: Version, response: Response) -> dict[str, Any]:
    """Field to value; null removes a field."""
    who.need(Right.TENANTS)
    await who.admin.set_project(name, texts(body), expect=version)
    return await show_project(who, name, response)


@router.delete("/{name}", status_code=204, summary="Delete a project")
async def delete_project(who: Asker, name: Name, version: Version) -> None:
    """409 while a tenant or a key belongs to it."""
    who.need(Right.TENANTS)
    await who.admin.delete_project(name, expect=version)
