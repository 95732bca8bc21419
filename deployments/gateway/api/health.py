"""Liveness and readiness."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from deployments.gateway.api.dependencies import Gateway
from policies.errors import NotFound

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """State of this gateway."""

    status: str = Field(
        description="`ok`, `partial` where some levels are not served yet or no receipt is signed, or `unready`."
    )
    reasons: list[str] = Field(default_factory=list, description="Why it is not `ok`.")


@router.get("/healthz", response_model=Health, summary="Liveness")
async def healthz() -> Health:
    """Always 200 while the process serves, whatever the store or the models do."""
    return Health(status="ok")


@router.get("/health", response_model=Health, responses={503: {"model": Health}}, summary="As /readyz")
@router.get("/readyz", response_model=Health, responses={503: {"model": Health}}, summary="Readiness")
async def readyz(gateway: Gateway) -> JSONResponse:
    """200 when the store answers and every model serves level 1.0, else 503; with the reasons why not all is served.

    A model that is an application of its own comes and goes: while it starts the others are served, so it is `partial`.
    """
    return _said(gateway.readiness(), gateway.pending())


@router.get(
    "/readyz/{model_id}",
    response_model=Health,
    responses={503: {"model": Health}},
    summary="Readiness of one model",
)
async def readyz_of(model_id: str, gateway: Gateway) -> JSONResponse:
    """200 when the model serves level 1.0 (one that sleeps wakes at its first request), 503 while it starts."""
    if (said := gateway.readiness_of(model_id)) is None:
        raise NotFound(f"No model '{model_id}'.", param="model", code="model_not_found")
    return _said(*said)


def _said(reasons: list[str], pending: list[str]) -> JSONResponse:
    status = "unready" if reasons else "partial" if pending else "ok"
    health = Health(status=status, reasons=[*reasons, *pending])
    return JSONResponse(health.model_dump(), status_code=503 if reasons else 200)
