"""What every router needs of a request: its gateway, who calls, and the security schemes that the docs show."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer

if TYPE_CHECKING:
    from deployments.gateway.service import TenantGateway

_bearer = HTTPBearer(auto_error=False, description="An API key: `Authorization: Bearer sk-...`")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key, in its own header")

# For the documentation only: the gateway reads the headers itself, to answer with the right error object.
KEY_REQUIRED = [Security(_bearer), Security(_header)]


class KeyedRoute(APIRoute):
    """A route that needs a key: checked before the body is read, so that nobody without one learns about its form, and
    nobody's bodies are in the way of others'."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, behind the key and the intake."""
        handler = super().get_route_handler()

        async def keyed(request: Request) -> Response:
            gateway = request.app.state.gateway
            entitlements = await gateway.authenticate(request)
            with gateway.intake.charged(entitlements.tenant):
                async with gateway.intake.read(request, entitlements.tenant):
                    return await handler(request)

        return keyed


def _gateway(request: Request) -> Any:
    return request.app.state.gateway


if TYPE_CHECKING:
    Gateway = TenantGateway
else:
    Gateway = Annotated[Any, Depends(_gateway)]
