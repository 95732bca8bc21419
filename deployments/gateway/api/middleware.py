"""Pure ASGI middlewares: what every response carries, how large a body may be, which client headers Serve may see."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.gateway.api.errors import error_response
from deployments.gateway.batches.lines import BATCH_LINE
from deployments.gateway.context import RequestContext
from policies.errors import PayloadTooLarge, ServiceError
from tenants.records.receipts import HEADER

logger = logging.getLogger("deployments.gateway.api")


class ReceiptHeaders:
    """Puts the receipt's headers on every response, errors and streams included.

    `x-request-id` is not set here: Serve's own middleware echoes or makes it, and it must stand once.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        # Serve has put its id among the request's headers where the client gave none.
        context = RequestContext(Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {})["context"] = context

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if context.limits is not None and not any(name.startswith("x-ratelimit-") for name in context.headers):
                    context.headers.update(context.limits())
                own = dict(context.headers)
                # A refusal gave no answer, so that nothing is signed of it; a failure of ours says on what terms.
                if not 400 <= message["status"] < 500 and context.sign is not None and (signed := context.sign()):
                    own[HEADER] = signed
                if context.headers:
                    own["x-overhead-duration-ms"] = f"{context.overhead_ms():.1f}"
                message = {**message, "headers": _with(message.get("headers", ()), own)}
            await send(message)

        return await self._app(scope, receive, send_with_headers)


def _with(headers: Iterable[tuple[bytes, bytes]], own: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """An answer's headers with our own in the place of any of their names; one by one Starlette looks all through."""
    ours = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in own.items()]
    names = {name for name, _ in ours}
    return [*((name, value) for name, value in headers if name not in names), *ours]


class BodyLimit:
    """Refuses a body over the limit: at once by its Content-Length, else as soon as it has grown past it.

    Args:
        most: bytes of a body, by the request's scope.
    """

    def __init__(self, app: ASGIApp, *, most: Callable[[Scope], int]) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        most, declared = self._most(scope), Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > most:
            return await error_response(_too_large(most))(scope, receive, send)
        received = 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise _too_large(most)
            return message

        return await self._app(scope, limited_receive, send)


def _too_large(most: int) -> PayloadTooLarge:
    size = f"{most / 2**20:.0f} MiB" if most >= 2**20 else f"{most / 2**10:.0f} KiB"
    return PayloadTooLarge(f"The request body is larger than {size}.", code="body_too_large")


class Unexpected:
    """Answers what nobody foresaw with 500, inside of what puts the headers on every answer: Starlette's own handler
    stands outside. Once an answer has begun it can only break off."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            if begun:
                raise
            logger.exception("request failed: %s %s", scope["method"], scope["path"])
            await error_response(ServiceError("The server failed on this request."))(scope, receive, send)


class Calls:
    """Counts the calls that clients wait for, to the end of their answers: beside them a batch's lines take their time.

    Args:
        under_way: to be entered while a call is.
    """

    def __init__(self, app: ASGIApp, *, under_way: Callable[[], AbstractContextManager[None]]) -> None:
        self._app, self._under_way = app, under_way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or BATCH_LINE in scope or _APART.match(scope["path"]):
            return await self._app(scope, receive, send)
        with self._under_way():
            await self._app(scope, receive, send)


_APART = re.compile("/v1/(files|batches)|/admin/")


class HeadAsGet:
    """Answers HEAD as GET without its body: monitors and clients ask so whether something is there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        return await self._app({**scope, "method": "GET"}, receive, send_without_body)


_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_NOT_FOR_CLIENTS = frozenset([b"x-request-timeout-seconds", b"x-request-disconnect-disabled"])


class ClientHeaders:
    """Keeps from Serve what a client must not decide: Serve echoes any request id, and lets clients lift its timeouts.

    An id of another form than letters, digits, `.`, `_`, `:`, `-` (128 at most) is dropped, and Serve makes its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["headers"] = [(name, value) for name, value in scope["headers"] if _passes(name.lower(), value)]
        return await self._app(scope, receive, send)


def _passes(name: bytes, value: bytes) -> bool:
    if name == b"x-request-id":
        return _REQUEST_ID.fullmatch(value) is not None
    return name not in _NOT_FOR_CLIENTS


def before_serve() -> list[Middleware]:
    """What Serve runs before anything of its own, by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`."""
    return [Middleware(ClientHeaders)]
