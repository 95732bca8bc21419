"""A time limit for answers of the store that the event loop's own delays do not count against."""

from __future__ import annotations

import asyncio
from types import TracebackType

LOOKS = 60
"""How often the loop must have come round: a new connection needs some twelve rounds until its first answer, one to a
server that does not know the script some twenty."""


class LoopTimeout:
    """As `asyncio.timeout`, but the limit is counted in looks of the loop, `seconds / LOOKS` apart where it keeps up.

    A busy loop comes round late: once by much, or each time by a little over the many steps of one answer. Its clock
    would then say that the store is away, whose answer lies in the socket, and the gateway would count by itself.

    A cancellation that the block swallows is raised at its end: redis-py waits with `asyncio.wait_for`, which before
    Python 3.12 loses one that comes just as it is done, and whoever ends a task would wait for it for ever.
    """

    def __init__(self, seconds: float) -> None:
        self._pause = seconds / LOOKS
        self._limit = asyncio.timeout(None)
        self._looks = 0

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._task = asyncio.current_task()
        self._asked = self._task.cancelling() if self._task else 0
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._pause, self._look)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, trace)
        if self._task and self._task.cancelling() > self._asked and kind is not asyncio.CancelledError:
            raise asyncio.CancelledError from error

    def _look(self) -> None:
        self._looks += 1
        if self._looks < LOOKS:
            self._timer = self._loop.call_later(self._pause, self._look)
        else:
            self._limit.reschedule(self._loop.time())
