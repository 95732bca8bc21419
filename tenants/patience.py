"""A time limit for answers of the store that the event loop's own delays do not count against."""

from __future__ import annotations

import asyncio
from types import TracebackType

TURNS = 10
"""Waits that a limit consists of: what lies in the socket is with its reader after about five turns of the loop."""


class Patience:
    """As `asyncio.timeout`, but in as many short waits, each of which counts no more than it was meant to last.

    On a busy gateway the loop comes late to everything, to the answers as to the timer of their limit. With one timer
    it would then believe that its store is away, and count by itself.
    """

    def __init__(self, seconds: float) -> None:
        self._wait = seconds / TURNS
        self._left = TURNS
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._wait, self._turn)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def _turn(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = self._loop.call_later(self._wait, self._turn)
        else:
            self._limit.reschedule(self._loop.time())
