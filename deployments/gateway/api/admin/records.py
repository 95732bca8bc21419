"""What is wrong, what was changed, and what receipts say."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from deployments.gateway.api.admin.identity import Asker
from deployments.gateway.api.admin.schemas import REFUSALS
from tenants.admin import installation, views
from tenants.admin.operators import Right
from tenants.command import show
from tenants.records.fields import iso
from tenants.records.receipts import ReceiptError, Signer
from tenants.reports import levels
from tenants.reports.replicas import ServedModels

router = APIRouter(tags=["records"], responses=REFUSALS)


class Receipts(BaseModel):
    """Receipts to be verified."""

    model_config = ConfigDict(extra="forbid")

    receipts: list[Annotated[str, Field(max_length=10_000)]] = Field(max_length=10_000)


@router.get("/check", summary="What is wrong")
async def check(who: Asker) -> dict[str, Any]:
    """Every record that does not validate or leads nowhere, and every level that has drifted."""
    who.need(Right.READ)
    reports = await ServedModels(who.store).reports()
    problems = await who.admin.check() + await who.admin.old_keys()
    problems += await installation.strangers(who.store, reports)
    problems += await installation.unmarked(who.store)
    drifted = [show.drift(*level) for level in levels.drifted(reports)]
    return {"problems": [views.problem(found) for found in problems], "drifted": drifted}


@router.get("/audit", summary="The last changes")
async def audit(who: Asker, count: Annotated[int, Query(ge=1, le=10_000)] = 50) -> dict[str, Any]:
    """With old and new values, the newest first."""
    who.need(Right.READ)
    return {"data": [{**entry, "time": iso(entry["time"])} for entry in await who.admin.log.read(count)]}


@router.get("/audit/verify", summary="Whether the audit log is whole")
async def verify(who: Asker) -> dict[str, Any]:
    """Keep `head` elsewhere: lines that came before it cannot be changed unseen then."""
    who.need(Right.READ)
    return await who.admin.log.verify()


@router.post("/receipts/verify", summary="What receipts say")
async def verify_receipts(who: Asker, body: Receipts) -> dict[str, Any]:
    """Whether each is this installation's; by the secret that the store has."""
    who.need(Right.READ)
    signer = Signer((await installation.receipt_secret(who.store)).encode())
    found: list[dict[str, Any]] = []
    for receipt in body.receipts:
        try:
            found.append({"genuine": True, **asdict(signer.verify(receipt))})
        except ReceiptError as error:
            found.append({"genuine": False, "problem": str(error)})
    return {"data": found}
