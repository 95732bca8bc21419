"""Liveness and readiness."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from deployments.gateway.api.dependencies import Gateway

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
    """200 when the store answers and every model serves level 1.0, else 503; with the reasons why not all is served."""
    reasons, pending = gateway.readiness(), gateway.pending()
    status = "unready" if reasons else "partial" if pending else "ok"
    health = Health(status=status, reasons=[*reasons, *pending])
    return JSONResponse(health.model_dump(), status_code=503 if reasons else 200)
