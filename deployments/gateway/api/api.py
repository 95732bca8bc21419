"""The FastAPI application of a gateway: one router per API, an explicit list of middlewares, one error mapping."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from deployments.config import GatewayArgs
from deployments.gateway.api import entitlements, errors, health, openai, vision
from deployments.gateway.api.dependencies import IGNORED
from deployments.gateway.api.intake import Intake, body_limit
from deployments.gateway.api.middleware import BodyLimit, HeadAsGet, ReceiptHeaders
from deployments.gateway.service import Gateway

DESCRIPTION = """\
One model, sold at many qualities. Send your key as `Authorization: Bearer <key>` (or `X-API-Key`).

Every answer of a model carries a receipt: `x-tenant-tier`, `x-utility` (the level applied), `x-focus`, and
`x-policy-version` (a digest of the records the policy was resolved from). `x-receipt` says the same with
the request's id, the time, the tenant and the model, and is signed: keep it, and the operator can confirm what the
answer was given at.
"""

EXPOSED = (
    *("x-request-id", "x-receipt", "x-tenant-tier", "x-utility", "x-focus", "x-policy-version"),
    *("x-overhead-duration-ms", "x-should-retry", "retry-after", IGNORED, vision.UNDISCLOSED),
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)
"""Headers that a page of another origin may read."""


def build_api(gateway: Gateway) -> FastAPI:
    """The HTTP surface of a gateway."""
    app = FastAPI(
        title="Tiered model serving",
        version=version("aim-serve"),
        description=DESCRIPTION,
        middleware=[
            *_for_browsers(gateway.args),
            Middleware(HeadAsGet),
            Middleware(ReceiptHeaders),
            Middleware(BodyLimit, most=partial(body_limit, gateway.args)),
        ],
    )
    app.state.gateway, app.state.intake = gateway, Intake(gateway.args)
    errors.install(app)
    for router in (openai.router, vision.router, entitlements.router, health.router):
        app.include_router(router)
    return app


def _for_browsers(args: GatewayArgs) -> list[Middleware]:
    """What lets pages of other origins call with a key and read the receipt; nothing unless configured."""
    if not args.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(args.cors_origins),
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
            max_age=3600,
        )
    ]
