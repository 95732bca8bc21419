"""All tiers and tenants as one document."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict

from deployments.gateway.api.admin.identity import Asker, Version, tagged
from deployments.gateway.api.admin.schemas import REFUSALS, Fields
from tenants.admin import manifest
from tenants.admin.operators import Right
from tenants.changes.edits import Changed

router = APIRouter(prefix="/file", tags=["file"], responses=REFUSALS)


class File(BaseModel):
    """Plans, tiers and tenants by name, each with its fields."""

    model_config = ConfigDict(extra="forbid")

    plans: dict[str, Fields] = {}
    tiers: dict[str, Fields] = {}
    projects: dict[str, Fields] = {}
    tenants: dict[str, Fields] = {}


@router.get("", summary="All tiers and tenants")
async def export(who: Asker, response: Response) -> dict[str, Any]:
    """As `tenants export`; the ETag is of all of them together."""
    who.need(Right.READ)
    stored = await manifest.current(who.admin)
    tagged(response, _version(stored))
    return dict(stored.records)


@router.post("", summary="Make tiers and tenants what a document says")
async def apply(
    who: Asker,
    body: File,
    version: Version,
    prune: Annotated[bool, Query(description="Delete tiers and tenants that the document lacks.")] = False,
    dry_run: Annotated[bool, Query(description="Show the difference and change nothing.")] = False,
) -> dict[str, Any]:
    """As `tenants apply`; the steps, which are made unless `dry_run`."""
    who.need(Right.TIERS, Right.TENANTS, Right.STATUS, Right.FOCUS, *([Right.KEYS] if prune else []))
    wanted = manifest.read(body.model_dump())
    stored = await manifest.current(who.admin)
    if version is not None and version != _version(stored):
        raise Changed("Tiers or tenants were changed since they were read; look at them again.")
    steps = manifest.plan(wanted, stored, prune=prune)
    if not dry_run:
        await manifest.apply(who.admin, steps)
    return {"steps": [asdict(step) for step in steps], "made": not dry_run}


def _version(stored: manifest.Stored) -> str:
    pairs = "".join(f"{key}={version};" for key, version in sorted(stored.versions.items()))
    return hashlib.sha256(pairs.encode("utf-8", "surrogatepass")).hexdigest()[:16]
