"""Running models: what they deliver, and their calibration."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from deployments.gateway.api.admin.identity import Asker
from deployments.gateway.api.admin.schemas import REFUSALS, Name
from tenants.admin.operators import Right
from tenants.changes.edits import Missing
from tenants.reports.jobs import BEFORE, LIVE, Job
from tenants.reports.levels import level_fields, merged
from tenants.reports.replicas import ServedModels

router = APIRouter(prefix="/models", tags=["models"], responses=REFUSALS)


class Calibration(BaseModel):
    """On what a model's levels are solved anew."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(
        max_length=4096,
        description="`live`: what tenants sent lately; `undo`: put back what the last refit replaced; else a folder of"
        " images or a text file where the model runs, from `/` on",
        pattern=r"^(live|undo|/[^\x00]*)$",
    )


@router.get("", summary="Every level in use")
async def levels(who: Asker) -> dict[str, Any]:
    """Sold against delivered, by model."""
    who.need(Right.READ)
    reports = await ServedModels(who.store).reports()
    groups = {model: merged(reports[model]) for model in sorted(reports)}
    return {model: [level_fields(g, own) for g in found for own in g.levels] for model, found in groups.items()}


@router.post("/{name}/calibrate", status_code=202, summary="Solve a model's levels anew")
async def calibrate(who: Asker, name: Name, body: Calibration) -> dict[str, Any]:
    """A job; GET says how far it is. 400 where no replica serves the model, or one is under way."""
    who.need(Right.MODELS)
    source = {"live": LIVE, "undo": BEFORE}.get(body.source, body.source)
    return _shown(await ServedModels(who.store).ask(name, source, await who.admin.log.who()))


@router.get("/{name}/calibrate", summary="How far a calibration is")
async def calibration(who: Asker, name: Name) -> dict[str, Any]:
    """The last one, for 20 seconds after its end."""
    who.need(Right.READ)
    job = await ServedModels(who.store).job(name)
    if job is None:
        raise Missing(f"No calibration of '{name}' is under way.")
    return _shown(job)


def _shown(job: Job) -> dict[str, Any]:
    return {name: value for name, value in asdict(job).items() if name != "first"}
