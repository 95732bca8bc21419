"""What lets pages of other origins call with a key and read the receipt; nothing unless configured."""

from __future__ import annotations

from collections.abc import Callable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.gateway.api.dependencies import IGNORED
from deployments.gateway.api.vision import UNDISCLOSED
from deployments.gateway.service import COST, REASON

EXPOSED = (
    *("x-request-id", "x-receipt", "x-tenant-tier", "x-utility", "x-focus", "x-policy-version"),
    *("x-overhead-duration-ms", "x-should-retry", "retry-after", IGNORED, UNDISCLOSED, COST, REASON),
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)
"""Headers that a page of another origin may read."""


class Browsers:
    """Starlette's CORS middleware for the origins that are configured now.

    Args:
        origins: asked at each request, since an operator may change them.
    """

    def __init__(self, app: ASGIApp, *, origins: Callable[[], tuple[str, ...]]) -> None:
        self._app, self._origins = app, origins
        self._for: tuple[str, ...] = ()
        self._passes = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (origins := self._origins()) != self._for:
            self._for, self._passes = origins, self._of(origins) if origins else self._app
        await self._passes(scope, receive, send)

    def _of(self, origins: tuple[str, ...]) -> ASGIApp:
        return CORSMiddleware(
            self._app,
            allow_origins=list(origins),
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
            max_age=3600,
        )
