"""Messages to others' servers: one POST, and whether it is worth another try."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

import httpx

TIMEOUT_S = 10.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0


class Undelivered(Exception):
    """It did not get there, or the other side could not take it; later it may.

    Args:
        after: seconds that the other side asks to wait, 0 where it says nothing.
    """

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class Refused(Exception):
    """The other side will not take it, however often it is sent."""


def client() -> httpx.AsyncClient:
    """A client that follows no redirect: an address is an admin's word, and no server's."""
    return httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False)


async def post(http: httpx.AsyncClient, url: str, content: bytes, headers: Mapping[str, str]) -> None:
    """Send it once. Raises Undelivered, Refused; neither repeats what was sent, nor a header."""
    try:
        # Of an answer only its status and a line of it are looked at.
        async with asyncio.timeout(TIMEOUT_S), http.stream("POST", url, content=content, headers=headers) as answer:
            said = b""
            async for piece in answer.aiter_bytes():
                said += piece
                if len(said) > 1000:
                    break
    except (httpx.HTTPError, TimeoutError, OSError) as error:
        raise Undelivered(f"{_host(url)} does not answer ({type(error).__name__})") from None
    status = answer.status_code
    if status < 300:
        return
    line = " ".join(said.decode("utf-8", "replace").split())[:200]
    message = f"{_host(url)} answered {status}: {line}" if line else f"{_host(url)} answered {status}"
    if status in (408, 409, 425, 429) or status >= 500:
        raise Undelivered(message, _seconds(answer.headers.get("retry-after", "")))
    raise Refused(message)


async def get(http: httpx.AsyncClient, url: str, *, most: int) -> bytes:
    """Read an address, once, `most` bytes of it at most. Raises Undelivered, Refused."""
    try:
        async with asyncio.timeout(TIMEOUT_S), http.stream("GET", url) as answer:
            found = b""
            async for piece in answer.aiter_bytes():
                found += piece
                if len(found) > most:
                    raise Refused(f"{_host(url)} answered more than {most} bytes")
    except (httpx.HTTPError, TimeoutError, OSError) as error:
        raise Undelivered(f"{_host(url)} does not answer ({type(error).__name__})") from None
    if answer.status_code != 200:
        raise Undelivered(f"{_host(url)} answered {answer.status_code}")
    return found


async def post_until_taken(
    http: httpx.AsyncClient, url: str, content: bytes, headers: Mapping[str, str], *, attempts: int
) -> None:
    """As `post`, again after pauses that double. Raises Refused, and Undelivered after the last attempt."""
    for attempt in range(attempts):
        try:
            return await post(http, url, content, headers)
        except Undelivered as error:
            if attempt == attempts - 1:
                raise
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
            await asyncio.sleep(max(min(error.after, LONGEST_PAUSE_S), pause * random.uniform(0.5, 1.0)))


def _host(url: str) -> str:
    """An address without its path and query, which may hold a secret."""
    return httpx.URL(url).host


def _seconds(text: str) -> float:
    return float(text) if text.isdecimal() and len(text) < 6 else 0.0
