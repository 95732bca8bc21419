"""A circuit breaker: while the store is away, requests learn so at once instead of each waiting for the timeout."""

from __future__ import annotations

import time

from policies.errors import Unavailable

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0


class CircuitBreaker:
    """Closed while the store answers. One failure opens it; then one caller per pause is let through as a probe."""

    def __init__(self) -> None:
        self.reason = ""
        self._open_since: float | None = None
        self._pause = FIRST_PAUSE_S
        self._next_probe = 0.0

    @property
    def closed(self) -> bool:
        return self._open_since is None

    def open_for(self) -> float:
        """Seconds since the first failure; 0 while closed."""
        return 0.0 if self._open_since is None else time.monotonic() - self._open_since

    def check(self) -> None:
        """Raise Unavailable while open, except for one probe per pause."""
        if self._open_since is None:
            return
        now = time.monotonic()
        if now < self._next_probe:
            raise Unavailable(self.reason)
        self._next_probe = now + self._pause

    def succeed(self) -> None:
        """The store answered."""
        if self._open_since is not None:
            self._open_since, self._pause, self.reason = None, FIRST_PAUSE_S, ""

    def fail(self, reason: str) -> None:
        """The store did not answer; `reason` is for a client, so it names no address and no secret."""
        now = time.monotonic()
        self.reason = reason
        if self._open_since is None:
            self._open_since = now
        elif now >= self._next_probe - self._pause:
            self._pause = min(self._pause * 2, LONGEST_PAUSE_S)
        self._next_probe = now + self._pause
