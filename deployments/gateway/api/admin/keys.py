"""API keys of tenants."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Response

from deployments.gateway.api.admin.identity import Asker, Version, tagged
from deployments.gateway.api.admin.schemas import REFUSALS, Fields, KeyId, Name, NewKey, Rotation, texts
from tenants.admin import views
from tenants.admin.operators import Right
from tenants.admin.settings import read_settings
from tenants.changes.edits import AdminError
from tenants.records import keyspace
from tenants.records.fields import parse_moment
from tenants.records.hashes import parse_key
from tenants.records.schema import RecordError

router = APIRouter(tags=["API keys"], responses=REFUSALS)


def moment(text: str | None) -> float | None:
    """Unix seconds of a body's `expires_at`. Raises AdminError."""
    try:
        return None if text is None else parse_moment(text)
    except (ValueError, OverflowError) as error:
        raise AdminError(f"expires_at: {error}", "expires_at") from None


@router.get("/tenants/{name}/keys", summary="List a tenant's keys")
async def list_keys(who: Asker, name: Name) -> dict[str, Any]:
    """Without their secrets, which nobody has; one whose record is broken too."""
    who.need(Right.READ)
    await who.admin.found(keyspace.tenant(name))
    found = (await who.admin.keys(name)).values()
    days = (await read_settings(who.store)).key_max_age_days
    return {"data": [views.broken_key(k) if isinstance(k, RecordError) else views.key(k, days) for k in found]}


@router.post("/tenants/{name}/keys", status_code=201, summary="Create a key")
async def create_key(who: Asker, name: Name, response: Response, body: NewKey | None = None) -> dict[str, Any]:
    """`key` is the secret, answered this once."""
    who.need(Right.KEYS)
    wanted = body or NewKey()
    secret, record = await who.admin.create_key(
        name,
        label=wanted.label,
        expires_at=moment(wanted.expires_at),
        scopes=wanted.scopes,
        limits={limit: str(most) for limit, most in wanted.limits.items()},
    )
    response.headers["Cache-Control"] = "no-store"
    return {"key": secret, **views.key(record)}


@router.get("/keys/{key}", summary="Show a key")
async def show_key(who: Asker, key: KeyId, response: Response) -> dict[str, Any]:
    """Its fields, and its version as ETag."""
    who.need(Right.READ)
    digest = await who.admin.find_digest(key)
    found = await who.admin.found(keyspace.apikey(digest))
    tagged(response, found.version)
    return views.key(parse_key(digest, found.whole))


@router.patch("/keys/{key}", summary="Change a key")
async def set_key(who: Asker, key: KeyId, body: Fields, version: Version, response: Response) -> dict[str, Any]:
    """Limits, scopes, label, expires_at; null removes a field."""
    who.need(Right.KEYS)
    record = await who.admin.set_key(key, texts(body), expect=version)
    return await show_key(who, record.digest, response)


@router.post("/keys/{key}/rotate", status_code=201, summary="Rotate a key")
async def rotate_key(
    who: Asker, key: KeyId, response: Response, body: Annotated[Rotation | None, Body()] = None
) -> dict[str, Any]:
    """A key like it, whose secret is answered this once; the old one ends after the overlap."""
    who.need(Right.KEYS)
    secret, record, old = await who.admin.rotate_key(key, overlap_s=(body or Rotation()).overlap_s)
    response.headers["Cache-Control"] = "no-store"
    return {"key": secret, **views.key(record), "replaces": views.key(old)}


@router.post("/keys/{key}/revoke", summary="Revoke a key")
async def revoke_key(who: Asker, key: KeyId) -> dict[str, Any]:
    """Its next request is refused; one whose record is broken can be revoked too."""
    who.need(Right.KEYS)
    record = await who.admin.revoke_key(key)
    return views.broken_key(record) if isinstance(record, RecordError) else views.key(record)
