"""What every router needs of a request: its gateway, and the security schemes that the API's documentation shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

if TYPE_CHECKING:
    from deployments.gateway import TenantGateway

_bearer = HTTPBearer(auto_error=False, description="An API key: `Authorization: Bearer sk-...`")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key, in its own header")

# For the documentation only: the gateway reads the headers itself, to answer with the right error object.
KEY_REQUIRED = [Security(_bearer), Security(_header)]


def _gateway(request: Request) -> Any:
    return request.app.state.gateway


if TYPE_CHECKING:
    Gateway = TenantGateway
else:
    Gateway = Annotated[Any, Depends(_gateway)]
