"""Domain errors to HTTP: the one place that knows status codes. Every failure is OpenAI's error object."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deployments.gateway.api.tolerance import UNSUPPORTED
from policies import errors

STATUS: dict[type[errors.ServiceError], tuple[int, str]] = {
    errors.InvalidRequest: (400, "invalid_request_error"),
    errors.Unauthenticated: (401, "authentication_error"),
    errors.NotEntitled: (403, "permission_error"),
    errors.NotFound: (404, "not_found_error"),
    errors.DeadlineExceeded: (408, "timeout_error"),
    errors.PayloadTooLarge: (413, "invalid_request_error"),
    errors.LimitExceeded: (429, "rate_limit_error"),
    errors.Unavailable: (503, "service_unavailable_error"),
}


_EXPECTED = {
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "string_type": "a string",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
}
"""What pydantic's complaints about a value's type ask for."""


def error_object(error: errors.ServiceError) -> dict[str, Any]:
    """The body of an error answer, also sent as the last event of a stream that failed."""
    _, kind = STATUS.get(type(error), (500, "server_error"))
    # A lone surrogate, which JSON can carry, has no bytes to be sent back as.
    message = error.message.encode("utf-8", "replace").decode()
    param = error.param and error.param.encode("utf-8", "replace").decode()
    return {"error": {"message": message, "type": kind, "param": param, "code": error.code}}


def error_response(error: errors.ServiceError) -> JSONResponse:
    """Status, headers and body of a domain error."""
    status, _ = STATUS.get(type(error), (500, "server_error"))
    headers = {}
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.LimitExceeded | errors.Unavailable) and error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, errors.DeadlineExceeded) or (isinstance(error, errors.LimitExceeded) and not error.retry_soon):
        headers["x-should-retry"] = "false"
    return JSONResponse(error_object(error), status_code=status, headers=headers)


def from_validation(details: list[Any]) -> errors.InvalidRequest:
    """The first of pydantic's complaints, as an error that names the field as a client would write it."""
    first = details[0]
    location = [part for part in first["loc"] if part not in ("body", "query", "path", "[key]")]
    if first["type"] == "json_invalid":
        return errors.InvalidRequest("The body is not valid JSON; send a JSON object.", code="invalid_json")
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".") or None
    if first["type"] in ("extra_forbidden", UNSUPPORTED):
        instead = first["msg"] if first["type"] == UNSUPPORTED else "Leave it out."
        return errors.InvalidRequest(f"Unsupported parameter: '{param}'. {instead}", param=param, code=UNSUPPORTED)
    if first["type"] == "missing" and param is None:
        return errors.InvalidRequest("The body is empty; send a JSON object.", code="missing")
    if first["type"] == "missing":
        return errors.InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing")
    if first["type"] in _EXPECTED:
        said = f"{_kind(first['input'])} was sent; send {_EXPECTED[first['type']]}"
        return errors.InvalidRequest(f"Invalid '{param or 'body'}': {said}.", param=param, code="invalid_type")
    message = first["msg"].removeprefix("Value error, ")
    return errors.InvalidRequest(f"Invalid '{param or 'body'}': {message}.", param=param, code="invalid_value")


def _kind(value: Any) -> str:
    """What a value is in JSON's words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else "something else")


def install(app: FastAPI) -> None:
    """Register the handlers that turn every exception into the error object."""

    @app.exception_handler(errors.ServiceError)
    async def _domain(request: Request, error: errors.ServiceError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(from_validation(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, errors.ServiceError):  # FastAPI wraps what reading the body raised
            return error_response(error.__cause__)
        if error.status_code == 404:
            message = f"No such route: {request.method} {request.url.path}. See /docs."
        elif error.status_code == 405:
            message = f"{request.method} is not allowed on {request.url.path}. See /docs."
        else:
            message = str(error.detail)
        body = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        return JSONResponse({"error": body}, status_code=error.status_code, headers=error.headers)
