"""Streams whose next piece is long in coming: comments meanwhile, and an end for who does not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Generic, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

Item = TypeVar("Item")

COMMENT = ": waiting\n\n"
"""A line of server-sent events that clients leave out; sending it finds out that one has left."""
COMMENT_EVERY_S = 5.0
READ_BY_S = 5.0
"""What a client may take, after a request's deadline, to read what is there."""
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""No proxy on the way is to wait for more of a stream."""


class Waited(Generic[Item]):
    """An iterator whose next item can be waited for, for a while, without losing it. `aclose` closes what it is of."""

    def __init__(self, items: AsyncGenerator[Item]) -> None:
        self._items = items
        self._next: asyncio.Task[Item] | None = None

    async def ready(self, timeout_s: float | None) -> bool:
        """Whether the next item comes within so many seconds; None waits for it. Raises what comes in its place."""
        if self._next is None:
            self._next = asyncio.ensure_future(anext(self._items))
        done, _ = await asyncio.wait([self._next], timeout=timeout_s)
        if done and not isinstance(error := self._next.exception(), StopAsyncIteration) and error is not None:
            raise error
        return bool(done)

    def __aiter__(self) -> Waited[Item]:
        return self

    async def __anext__(self) -> Item:
        await self.ready(None)
        assert self._next is not None
        ended, self._next = self._next, None
        return ended.result()

    async def or_pauses(self, pause_s: float) -> AsyncIterator[Item | None]:
        """The items, and None whenever none has come for so long."""
        while True:
            while not await self.ready(pause_s):
                yield None
            try:
                yield await anext(self)
            except StopAsyncIteration:
                return

    async def aclose(self) -> None:
        """Cancel what is waited for, and close."""
        if self._next is not None:
            self._next.cancel()
            with suppress(BaseException):
                await asyncio.wait([self._next])
        await self._items.aclose()


class LeasedStream(StreamingResponse):
    """Server-sent events that hold a request's lease, and release it even where the client leaves before the first.

    Args:
        deadline: loop time of the request's; a stream whose client reads nothing ends a little after it.
    """

    def __init__(self, events: AsyncIterator[str], stack: AsyncExitStack, deadline: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_HEADERS)
        self._stack, self._deadline = stack, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            # Nothing more can be sent to who does not read: the connection ends where the answer stands.
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._deadline + READ_BY_S):
                    await super().__call__(scope, receive, send)
