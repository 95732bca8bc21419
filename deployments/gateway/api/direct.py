"""Endpoints called as they stand: FastAPI reads their signature for the documentation alone."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.gateway.api.errors import error_response, from_validation
from policies.errors import ServiceError

Reader = Callable[[Request], Any]
Handler = Callable[[Request], Awaitable[Response]]


class Directly:
    """Takes requests to the handlers of some routes, in the place of FastAPI's router and what stands around it.

    What they refuse is answered as everywhere; all else, and all other requests, is the application's.

    Args:
        routes: in the order in which they are tried, each with its handler.
    """

    def __init__(self, app: ASGIApp, *, routes: Sequence[tuple[APIRoute, Handler]]) -> None:
        self._app, self._routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path, method = scope["path"].removeprefix(scope.get("root_path", "")), scope["method"]
        for route, handler in self._routes:
            if method in (route.methods or ()) and (found := route.path_regex.match(path)):
                words = found.groupdict()
                scope["path_params"] = {name: route.param_convertors[name].convert(words[name]) for name in words}
                response = await _answered(handler, Request(scope, receive, send))
                return await response(scope, receive, send)
        return await self._app(scope, receive, send)


async def _answered(handler: Handler, request: Request) -> Response:
    try:
        return await handler(request)
    except ServiceError as error:
        return error_response(error)
    except RequestValidationError as error:
        return error_response(from_validation(list(error.errors())))


def direct(
    endpoint: Callable[..., Any], path: Collection[str], given: Callable[[Any], Reader | None]
) -> Handler | None:
    """What calls an endpoint with the words of a request; None: FastAPI has to, since it is to make the answer, too.

    To solve an endpoint's dependencies costs as much as all else that HTTP takes. An optional word that is neither in
    the path nor the body stands in the documentation alone: the endpoint reads it of the request.

    Args:
        path: names of the words in its path.
        given: what reads a word of a type, where every endpoint is given such.

    Raises (the handler):
        RequestValidationError: the body is not what the endpoint takes.
    """
    hints = get_type_hints(endpoint, include_extras=True)
    if not (inspect.isclass(answer := hints.pop("return", None)) and issubclass(answer, Response)):
        return None
    readers: dict[str, Reader] = {}
    bodies: dict[str, type[BaseModel]] = {}
    for name, word in inspect.signature(endpoint).parameters.items():
        hint = hints[name]
        if hint is Request:
            readers[name] = _itself
        elif (reader := given(hint)) is not None:
            readers[name] = reader
        elif name in path:
            readers[name] = _in_path(name)
        elif inspect.isclass(hint) and issubclass(hint, BaseModel) and not bodies:
            bodies[name] = hint
        elif word.default is inspect.Parameter.empty:
            return None

    async def called(request: Request) -> Response:
        words = {name: read(request) for name, read in readers.items()}
        for name, kind in bodies.items():
            words[name] = _body(kind, await request.body())
        response: Response = await endpoint(**words)
        return response

    return called


def _itself(request: Request) -> Request:
    return request


def _in_path(name: str) -> Reader:
    return lambda request: request.path_params[name]


def _body(kind: type[BaseModel], body: bytes) -> BaseModel:
    try:
        value = json.loads(body) if body else None
    except (ValueError, RecursionError):
        raise RequestValidationError([_complaint("json_invalid", "JSON decode error")]) from None
    if value is None:
        raise RequestValidationError([_complaint("missing", "Field required")])
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in details]) from None


def _complaint(kind: str, message: str) -> dict[str, Any]:
    return {"type": kind, "loc": ("body",), "msg": message, "input": None}
