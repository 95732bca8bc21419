"""When a line of a batch may run: while nobody calls, several at once; beside calls one at a time, with rests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from tenants.live.entitlements import Entitlements
from tenants.metering import meters
from tenants.metering.admission import Admission
from tenants.metering.meters import MINUTE, NOW

QUIET_S = 5.0
"""After the last call's end, for so long one more is expected: what a line has begun cannot be taken back."""
REST = 2.0
"""Beside calls, a line is followed by a pause of so many times what it took."""
_LOOK_S = 0.05
_LONGEST_WAIT_S = 5.0


class Foreground:
    """The calls that clients wait for, as one gateway sees them."""

    def __init__(self) -> None:
        self._count, self._last = 0, -QUIET_S

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """One more within."""
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
            self._last = time.monotonic()

    @property
    def quiet(self) -> bool:
        """Whether nobody calls, nor has for a while."""
        return not self._count and time.monotonic() - self._last >= QUIET_S


class Turns:
    """Whose line is next in one gateway: first come, first served, and as many as the calls beside them allow.

    Args:
        at_once: lines under way while nobody calls; asked at each turn, since an operator may change it.
    """

    def __init__(self, foreground: Foreground, at_once: Callable[[], int]) -> None:
        self._foreground, self._at_once = foreground, at_once
        self._running, self._rests_until = 0, 0.0
        self._first, self._ended = asyncio.Lock(), asyncio.Event()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Within, a line may run."""
        async with self._first:
            while not self._may():
                self._ended.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), _LOOK_S)
            self._running += 1
        began = time.monotonic()
        try:
            yield
        finally:
            self._running -= 1
            now = time.monotonic()
            self._rests_until = now + REST * (now - began)
            self._ended.set()

    def _may(self) -> bool:
        if self._foreground.quiet:
            return self._running < self._at_once()
        return not self._running and time.monotonic() >= self._rests_until


async def wait_for_limits(admission: Admission, own: Entitlements) -> float:
    """Seconds after which a line should look again; 0: it may be admitted.

    Half of each limit of a minute, and of what may run at a time, is left to the tenant's other calls.
    """
    if not any(limit.period in (MINUTE, NOW) for limit in meters.limits_of(own)):
        return 0.0
    waits = [0.0]
    for reading in (await admission.look(own)).readings:
        if reading.limit.period in (MINUTE, NOW) and reading.left - 1 < reading.limit.most // 2:
            waits.append(min(_LONGEST_WAIT_S, max(0.2, reading.reset_ms / 1000)))
    return max(waits)
