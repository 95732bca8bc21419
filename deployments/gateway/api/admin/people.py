"""Admin keys: who may do any of this."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from deployments.gateway.api.admin.identity import Asker
from deployments.gateway.api.admin.keys import moment
from deployments.gateway.api.admin.schemas import REFUSALS, KeyId, NewPerson
from tenants.admin import views
from tenants.admin.operators import Right, Role

router = APIRouter(tags=["admin keys"], responses=REFUSALS)


@router.get("/me", summary="Whose key this is")
async def me(who: Asker) -> dict[str, Any]:
    """Name and role."""
    return views.operator(who.operator)


@router.get("/admin-keys", summary="List admin keys")
async def list_people(who: Asker) -> dict[str, Any]:
    """Without their secrets."""
    who.need(Right.PEOPLE)
    return {"data": [views.operator(own) for own in (await who.operators.all()).values()]}


@router.post("/admin-keys", status_code=201, summary="Create an admin key")
async def create_person(who: Asker, body: NewPerson, response: Response) -> dict[str, Any]:
    """`key` is the secret, answered this once."""
    who.need(Right.PEOPLE)
    secret, own = await who.operators.create(body.name, Role(body.role), expires_at=moment(body.expires_at))
    response.headers["Cache-Control"] = "no-store"
    return {"key": secret, **views.operator(own)}


@router.post("/admin-keys/{key}/revoke", summary="Revoke an admin key")
async def revoke_person(who: Asker, key: KeyId) -> dict[str, str]:
    """Its next request is refused."""
    who.need(Right.PEOPLE)
    return {"revoked": await who.operators.revoke(key)}
