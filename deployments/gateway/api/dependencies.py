"""What every router needs of a request: its gateway, who calls, and the security schemes that the docs show."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer

from deployments.gateway import context as request_context
from deployments.gateway import service
from deployments.gateway.api.direct import Handler, Reader, direct
from deployments.gateway.api.tolerance import Leniency, leniency
from deployments.gateway.batches.lines import BATCH_LINE, Caller
from policies.errors import InvalidRequest
from tenants.live.entitlements import Entitlements

IGNORED = "x-ignored-parameters"
"""Names what of a request asked for nothing, and was dropped."""

_bearer = HTTPBearer(auto_error=False, description="An API key: `Authorization: Bearer sk-...`")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key, in its own header")

# For the documentation only: the gateway reads the headers itself, to answer with the right error object.
KEY_REQUIRED = [Security(_bearer), Security(_header)]


class KeyedRoute(APIRoute):
    """A route that needs a key: checked before the body is read, so that nobody without one learns about its form, and
    nobody's bodies are in the way of others'.

    Attributes:
        direct: what answers it without FastAPI; None: FastAPI makes its answer.
    """

    direct: Handler | None

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint, or FastAPI's handler of it, behind the key and the intake."""
        own = direct(self.endpoint, self.param_convertors, _GIVEN.get)
        handler = own or super().get_route_handler()

        async def keyed(request: Request) -> Response:
            gateway, intake = request.app.state.gateway, request.app.state.intake
            context = request.state.context
            own = await _caller(gateway, context, request)
            # A batch's lines have their own part of what a tenant may have under way, and refused.
            flow = own.share().lane
            read = Leniency(strict=gateway.settings.now.strict)
            leniency.set(read)
            async with intake.charged(flow, request.headers):
                async with intake.read(request, flow):
                    if self.body_field is not None:
                        check_json(request.headers.get("content-type", ""))
                    try:
                        return await handler(request)
                    finally:
                        if read.ignored:
                            context.headers[IGNORED] = ", ".join(read.ignored)

        self.direct = None if own is None else keyed
        return keyed


def check_json(content_type: str) -> None:
    """Refuse a body that is declared to be something else. Raises InvalidRequest."""
    if not is_json(content_type):
        raise InvalidRequest(
            f"The body's content type is {said_kind(content_type)}; send JSON, with the header"
            " 'Content-Type: application/json'.",
            code="invalid_content_type",
        )


def said_kind(content_type: str) -> str:
    """What a body is declared to be, for a message."""
    return f"'{content_type[:100]}'" if content_type else "not given"


def is_json(content_type: str) -> bool:
    """Whether a body is declared to be JSON."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def _caller(gateway: service.Gateway, context: request_context.RequestContext, request: Request) -> Entitlements:
    """Whose key a request has; of a batch's line, of which only this process can say so, whose it had."""
    if isinstance(line := request.scope.get(BATCH_LINE), Caller):
        return await gateway.authenticate_again(context, line.digest, line.tenant)
    return await gateway.authenticate(context, api_key(request))


def api_key(request: Request) -> str:
    """The key that a request came with; "": none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("x-api-key", "").strip()


# Coroutines all of them: FastAPI gives a plain function a thread, which costs a request as much as the rest of HTTP.
async def _gateway(request: Request) -> Any:
    return request.app.state.gateway


async def _context(request: Request) -> Any:
    return request.state.context


if TYPE_CHECKING:
    Gateway = service.Gateway
    Context = request_context.RequestContext
else:
    # Any: FastAPI would make a field of what it can check.
    Gateway = Annotated[Any, Depends(_gateway)]
    Context = Annotated[Any, Depends(_context)]

_GIVEN: dict[Any, Reader] = {
    Gateway: lambda request: request.app.state.gateway,
    Context: lambda request: request.state.context,
}
