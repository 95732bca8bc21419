"""The FastAPI application of a gateway: one router per API, an explicit list of middlewares, one error mapping."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware

from deployments.gateway.api import (
    batches,
    embeddings,
    entitlements,
    errors,
    files,
    health,
    openai,
    responses,
    usage,
    vision,
)
from deployments.gateway.api.admin.app import PREFIX
from deployments.gateway.api.browsers import Browsers
from deployments.gateway.api.dependencies import KeyedRoute
from deployments.gateway.api.direct import Directly
from deployments.gateway.api.intake import Intake, body_limit
from deployments.gateway.api.middleware import BodyLimit, Calls, HeadAsGet, ReceiptHeaders, Unexpected
from deployments.gateway.api.site import pages
from deployments.gateway.batches.runner import BatchRunner
from deployments.gateway.service import Gateway

DESCRIPTION = """\
One model, sold at many qualities. Send your key as `Authorization: Bearer <key>` (or `X-API-Key`).

Every answer of a model carries a receipt: `x-tenant-tier`, `x-utility` (the level applied), `x-focus`, and
`x-policy-version` (a digest of the records the policy was resolved from). `x-receipt` says the same with
the request's id, the time, the tenant and the model, and is signed: keep it, and the operator can confirm what the
answer was given at.
"""


def build_api(gateway: Gateway, admin: FastAPI | None = None, runner: BatchRunner | None = None) -> FastAPI:
    """The HTTP surface of a gateway.

    Args:
        admin: administration as well, of `admin.app.build_admin`.
        runner: files and batches as well, which it works on once it is started with `batch_lines.asker` of this.
    """
    apis = (openai, responses, embeddings, vision, entitlements, usage, health)
    routers = [api.router for api in apis]
    keyed = [route for router in routers for route in router.routes if isinstance(route, KeyedRoute)]
    app = FastAPI(
        title="Tiered model serving",
        version=version("aim-serve"),
        description=DESCRIPTION,
        middleware=[
            Middleware(Browsers, origins=lambda: gateway.settings.now.cors_origins),
            Middleware(HeadAsGet),
            Middleware(ReceiptHeaders),
            Middleware(BodyLimit, most=lambda scope: body_limit(gateway.settings.now, scope)),
            Middleware(Unexpected),
            *([] if runner is None else [Middleware(Calls, under_way=runner.foreground.under_way)]),
            Middleware(Directly, routes=[(route, route.direct) for route in keyed if route.direct]),
        ],
    )
    app.state.gateway, app.state.intake = gateway, Intake(gateway.settings)
    errors.install(app)
    for router in (*routers, pages.router):
        app.include_router(router)
    if runner is not None:
        app.state.batches = runner
        for router in (files.router, batches.router):
            app.include_router(router)
    if admin is not None:
        app.mount(PREFIX, admin)
        app.include_router(pages.console)
    return app
