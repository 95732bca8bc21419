"""The lines of a batch: JSON in, one request each, and one line of JSON out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

BATCH_LINE = "aim.batch_line"
"""In the scope of a request that a line is: its `Caller`. Nothing that a client sends gets there."""
WINDOW_S = 86_400
"""Seconds of the completion window, 24h."""
MOST_FAULTS = 20
"""Faults of a file that are told."""
_LONGEST_ID = 256
_KNOWN = frozenset(["custom_id", "method", "url", "body"])
_IN_LOOP = 2**16
"""Bytes that are parsed without a thread of their own."""


@dataclass(frozen=True)
class Line:
    """One request of a batch: `number` counts the file's lines from 1, `body` is JSON."""

    number: int
    custom_id: str
    url: str
    body: bytes


@dataclass(frozen=True)
class Fault:
    """What is wrong with a batch's file, in OpenAI's words."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True)
class Caller:
    """As whose request a line is made: the SHA-256 of an API key, and its tenant."""

    digest: str
    tenant: str


@dataclass(frozen=True)
class Answer:
    """What a line was answered. `headers` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str | None:
        """The code of an error's object."""
        try:
            return str(json.loads(self.body)["error"]["code"])
        except (ValueError, KeyError, TypeError):
            return None


Ask = Callable[[Line, Caller, str], Coroutine[Any, Any, Answer]]
"""Makes a line's request, under an id of the request."""

RECEIPT = (
    *("x-utility", "x-utility-reason", "x-focus", "x-tenant-tier", "x-policy-version", "x-receipt", "x-cost"),
    *("x-scores", "x-ignored-parameters"),
)
"""Headers of an answer that a line of output repeats."""


async def split(pieces: AsyncIterable[bytes]) -> AsyncIterator[list[tuple[int, bytes]]]:
    """A file's lines with their numbers, some at a time; blank ones are left out."""
    rest, number = b"", 0
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n") if b"\n" in piece else [rest + piece]
        yield [(number + at, raw) for at, raw in enumerate(whole, 1) if raw.strip()]
        number += len(whole)
    if rest.strip():
        yield [(number + 1, rest)]


async def parsed(lines: list[tuple[int, bytes]], endpoint: str) -> list[Line | Fault]:
    """Each line as what it asks for, or what is wrong with it."""
    if sum(len(raw) for _, raw in lines) <= _IN_LOOP:
        return [_line(number, raw, endpoint) for number, raw in lines]
    return await asyncio.to_thread(lambda: [_line(number, raw, endpoint) for number, raw in lines])


def _line(number: int, raw: bytes, endpoint: str) -> Line | Fault:
    try:
        given = json.loads(raw)
    except (ValueError, RecursionError):
        return Fault("invalid_json_line", "This line is not valid JSON; send one object a line.", number)
    if not isinstance(given, dict):
        return Fault("invalid_json_line", "This line is no JSON object; send custom_id, method, url and body.", number)
    if unknown := sorted(set(given) - _KNOWN):
        said = f"Unsupported field '{unknown[0][:80]}'; a line has custom_id, method, url and body."
        return Fault("invalid_request", said, number, unknown[0][:80])
    custom_id, body = given.get("custom_id"), given.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _LONGEST_ID:
        said = f"custom_id must be a text of 1 to {_LONGEST_ID} characters, another in each line."
        return Fault("invalid_custom_id", said, number, "custom_id")
    if given.get("method") != "POST":
        return Fault("invalid_method", "method must be POST.", number, "method")
    if given.get("url") != endpoint:
        return Fault("mismatched_url", f"url must be the batch's endpoint, {endpoint}.", number, "url")
    if not isinstance(body, dict):
        return Fault("invalid_request", "body must be a JSON object: the request.", number, "body")
    if body.get("stream"):
        return Fault("invalid_request", "stream is of no use in a batch; leave it out.", number, "body.stream")
    return Line(number, custom_id, endpoint, json.dumps(body).encode())


def result(batch_id: str, line: Line, request_id: str, answer: Answer) -> bytes:
    """The line of output that an answer makes, without its end."""
    told = {name: answer.headers[name] for name in RECEIPT if name in answer.headers}
    head = {"status_code": answer.status, "request_id": request_id, "headers": told}
    given = answer.headers.get("content-type", "").startswith("application/json") and b"\n" not in answer.body
    # As it came: a mask or an embedding is long, and need not be parsed to be written.
    body = answer.body if given else json.dumps(answer.body.decode("utf-8", "replace")).encode()
    response = json.dumps(head)[:-1].encode() + b', "body": ' + body + b"}"
    return _output(batch_id, line.number, line.custom_id, response, None)


def unanswered(batch_id: str, line: Line, code: str, message: str) -> bytes:
    """The line of output of a request that was never made."""
    return _output(batch_id, line.number, line.custom_id, b"null", {"code": code, "message": message})


def _output(batch_id: str, number: int, custom_id: str, response: bytes, error: Mapping[str, str] | None) -> bytes:
    head = {"id": f"batch_req_{batch_id.removeprefix('batch_')}_{number}", "custom_id": custom_id}
    return (
        json.dumps(head)[:-1].encode()
        + b', "response": '
        + response
        + b', "error": '
        + json.dumps(error).encode()
        + b"}"
    )
