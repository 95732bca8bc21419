"""What holds for the whole installation, and where alerts are sent."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from deployments.gateway.api.admin.identity import Asker, Version, tagged
from deployments.gateway.api.admin.schemas import REFUSALS, Fields, Name, texts
from tenants.admin import settings
from tenants.admin.operators import Right
from tenants.changes import edits
from tenants.changes.edits import Missing
from tenants.metering import alerts
from tenants.records import keyspace
from tenants.records.settings import parse_settings

router = APIRouter(tags=["settings"], responses=REFUSALS)


class Address(BaseModel):
    """Where alerts are sent."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=2000, description="https, or http on the gateways' own loopback.")


@router.get("/settings", summary="Show the settings")
async def show_settings(who: Asker, response: Response) -> dict[str, Any]:
    """With their version as ETag."""
    who.need(Right.READ)
    found = await edits.read(who.store, keyspace.SETTINGS)
    tagged(response, found.version or "0")
    return parse_settings(found.whole).model_dump()


@router.patch("/settings", summary="Change settings")
async def set_settings(who: Asker, body: Fields, version: Version, response: Response) -> dict[str, Any]:
    """Field to value; null puts the default back."""
    who.need(Right.SETTINGS)
    await settings.change_settings(who.store, who.admin.log, texts(body), expect="" if version == "0" else version)
    return await show_settings(who, response)


@router.get("/webhooks", summary="List webhooks")
async def list_webhooks(who: Asker) -> dict[str, Any]:
    """Addresses by name, without their secrets."""
    who.need(Right.READ)
    return {"data": [{"name": name, "url": url} for name, url in (await settings.webhooks(who.store)).items()]}


@router.put("/webhooks/{name}", summary="Send alerts to an address")
async def set_webhook(who: Asker, name: Name, body: Address, response: Response) -> dict[str, str]:
    """`secret` signs its messages, and is answered this once; one of that name gets a new one."""
    who.need(Right.SETTINGS)
    secret = await settings.set_webhook(who.store, who.admin.log, name, body.url)
    response.headers["Cache-Control"] = "no-store"
    return {"name": name, "url": body.url, "secret": secret}


@router.delete("/webhooks/{name}", status_code=204, summary="Send nothing there any more")
async def remove_webhook(who: Asker, name: Name) -> None:
    """404 where there is none."""
    who.need(Right.SETTINGS)
    await settings.remove_webhook(who.store, who.admin.log, name)


@router.post("/webhooks/{name}/test", status_code=202, summary="Send a test")
async def test_webhook(who: Asker, name: Name) -> dict[str, str]:
    """A gateway sends it within seconds."""
    who.need(Right.SETTINGS)
    if name not in await settings.webhooks(who.store):
        raise Missing(f"There is no webhook '{name}'.")
    return {"id": await alerts.test(who.store, name)}
