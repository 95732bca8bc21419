"""A time limit for answers of the store that the event loop's own delays do not count against."""

from __future__ import annotations

import asyncio
from types import TracebackType

LATE_S = 0.05
MOST_LOOKS = 4


class Patience:
    """As `asyncio.timeout`, but where the loop itself comes late, what arrived meanwhile is looked at first.

    A loop that stood still for longer than the limit finds timer and answer at once, and `asyncio.timeout` takes the
    timer: a busy gateway would then believe that its store is away, and count by itself.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._limit = asyncio.timeout(None)
        self._looks = 0

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def _wait(self) -> None:
        self._looks += 1
        due = self._loop.time() + self._seconds
        self._timer = self._loop.call_at(due, self._look, due)

    def _look(self, due: float) -> None:
        now = self._loop.time()
        if now - due > LATE_S and self._looks < MOST_LOOKS:
            self._wait()
        else:
            self._limit.reschedule(now)
