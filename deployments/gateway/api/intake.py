"""What is read of clients: how large, how much at once, for how long, and what refused requests cost."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from deployments.gateway.settings import Settings
from deployments.gateway_settings import GatewaySettings
from policies.errors import DeadlineExceeded, InvalidRequest, LimitExceeded, ServiceError, Unavailable

MOST_ELEMENTS, MOST_CONTAINERS = 2**17, 2**15
"""Of a JSON body, and lists and objects among them: parsing then holds the event loop for some milliseconds."""
LARGE_JSON = 2**16
"""Bytes of a body whose parsing is felt by others."""
BURST_S = 10.0
"""Seconds' worth of bad requests that a tenant may send at once."""
BROKEN = 10.0
"""Bad requests that one body costs which breaks off, beside its size: it was read for nothing."""
BYTES_PER_BAD = 2**14
"""So many bytes of a refused body count as one request more, up to the size of a text's: to parse a megabyte of JSON
takes as long as sixty small ones."""
HELD_S, MOST_HELD = 1.0, 32
"""Seconds that a tenant which has used up its bad requests waits to be told so, and how many of its requests do at a
time: a client that asks again at every refusal then asks once a second."""
_ELEMENTS, _CONTAINERS = (b",", b"[", b"{", b":"), (b"[", b"{")
_FORM_BYTES = 2**14
"""What a form has beside its file."""
_TEXT = re.compile(r"(/models/.+)?/v1/")


def body_limit(settings: GatewaySettings, scope: Scope) -> int:
    """Most bytes of a body: those of text are JSON and small, a picture is neither."""
    if scope["path"] == "/v1/files":
        return settings.batch_file_bytes + _FORM_BYTES
    return settings.max_text_bytes if _TEXT.match(scope["path"]) else settings.max_body_bytes


class Intake:
    """What one gateway reads, for all its tenants.

    Args:
        settings: limits; per tenant and in all.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._held: dict[str, int] = {}
        self._bad: dict[str, tuple[float, float]] = {}
        self._waiting: Counter[str] = Counter()

    @asynccontextmanager
    async def read(self, request: Request, flow: str) -> AsyncIterator[None]:
        """A request of a tenant whose body has been read, and is held within.

        Raises:
            Unavailable: too many bytes of the tenant's, or of all tenants', are held already.
            DeadlineExceeded: the body did not come in time.
            ClientDisconnect: it broke off, which is charged to the tenant.
            InvalidRequest: a JSON body of too many elements.
        """
        settings = self._settings.now
        with self._hold(flow, _declared(request.headers, body_limit(settings, request.scope))):
            try:
                async with asyncio.timeout(settings.body_timeout_s):
                    body = await request.body()
            except (ClientDisconnect, asyncio.CancelledError):
                self._charge(flow, BROKEN + self._size(request.headers))
                raise
            except TimeoutError:
                raise DeadlineExceeded(
                    f"The request's body did not come within {settings.body_timeout_s:g} s.", code="body_timeout"
                ) from None
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
                check_elements(body)
                if _parse_large(request, body):
                    await asyncio.sleep(0)  # others' turn, before it is validated
            yield

    @asynccontextmanager
    async def charged(self, flow: str, headers: Headers) -> AsyncIterator[None]:
        """What is refused within is charged to its tenant, and nothing more is read of one that has used up its own.

        Args:
            headers: of the request, which say how large it is.

        Raises:
            LimitExceeded: it has; the error says for how long.
        """
        rate = self._settings.now.bad_requests_per_s
        wait = (1.0 - self._left(flow, rate)) / rate
        if wait > 0.0:
            await self._held_back(flow)
            raise LimitExceeded(
                f"Too many of this tenant's requests were refused for what they ask; mend them, retry in {wait:.1f} s.",
                retry_after=max(1, round(wait)),
                code="too_many_bad_requests",
            )
        try:
            yield
        except (ServiceError, RequestValidationError) as error:
            if not isinstance(error, Unavailable | LimitExceeded):
                self._charge(flow, 1.0 + self._size(headers))
            raise

    def _size(self, headers: Headers) -> float:
        """Bad requests that the size of one counts for."""
        return _declared(headers, self._settings.now.max_text_bytes) / BYTES_PER_BAD

    async def _held_back(self, flow: str) -> None:
        if self._waiting[flow] >= MOST_HELD:
            return
        self._waiting[flow] += 1
        try:
            await asyncio.sleep(HELD_S)
        finally:
            self._waiting[flow] -= 1
            if not self._waiting[flow]:
                del self._waiting[flow]

    def _charge(self, flow: str, count: float) -> None:
        self._bad[flow] = (self._left(flow, self._settings.now.bad_requests_per_s) - count, time.monotonic())

    def _left(self, flow: str, rate: float) -> float:
        """Bad requests that a tenant may send now."""
        left, since = self._bad.get(flow, (BURST_S * rate, 0.0))
        left += (time.monotonic() - since) * rate
        if left >= BURST_S * rate:
            self._bad.pop(flow, None)
        return min(left, BURST_S * rate)

    @contextmanager
    def _hold(self, flow: str, count: int) -> Iterator[None]:
        own, everyone = self._held.get(flow, 0), sum(self._held.values())
        if own and own + count > self._settings.now.max_tenant_bytes:
            raise _busy(f"{own / 2**20:.0f} MiB of this tenant's requests")
        if everyone and everyone + count > self._settings.now.max_held_bytes:
            raise _busy(f"{everyone / 2**20:.0f} MiB of requests")
        self._held[flow] = own + count
        try:
            yield
        finally:
            # Of two requests without a body the first to end has taken the tenant out already.
            if left := self._held.pop(flow, 0) - count:
                self._held[flow] = left


def _parse_large(request: Request, body: bytes) -> bool:
    """Parse a large body by a library that takes a third of the time, as what FastAPI would else parse; whether it did.

    What that library refuses (half a surrogate pair, 200 lists in lists) is left to Python's own, which says why.
    """
    if len(body) > LARGE_JSON:
        with suppress(ValueError):
            request._json = from_json(body)
            return True
    return False


def check_elements(body: bytes) -> None:
    """Refuse JSON that would take long to parse. Raises InvalidRequest."""
    for marks, most, what in (
        (_ELEMENTS, MOST_ELEMENTS, "elements"),
        (_CONTAINERS, MOST_CONTAINERS, "lists and objects"),
    ):
        if len(body) > most and sum(map(body.count, marks)) > most:
            raise InvalidRequest(f"The JSON body has more than {most:,} {what}; send fewer.", code="too_many_elements")


def _declared(headers: Headers, most: int) -> int:
    length = headers.get("content-length", "")
    return min(int(length), most) if length.isdigit() else 0 if "transfer-encoding" not in headers else most


def _busy(what: str) -> Unavailable:
    return Unavailable(f"{what} are under way already; retry later.", retry_after=1, code="too_much_under_way")
