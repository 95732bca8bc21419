"""A circuit breaker: while the store is away, requests learn so at once instead of each waiting for the timeout."""

from __future__ import annotations

import time

from policies.errors import Unavailable


class CircuitBreaker:
    """Closed while the store answers. One failure opens it; its owner closes it when a probe was answered."""

    def __init__(self) -> None:
        self.reason = ""
        self._open_since: float | None = None

    @property
    def closed(self) -> bool:
        return self._open_since is None

    def open_for(self) -> float:
        """Seconds since the first failure; 0 while closed."""
        return 0.0 if self._open_since is None else time.monotonic() - self._open_since

    def check(self) -> None:
        """Raise Unavailable while open."""
        if self._open_since is not None:
            raise Unavailable(self.reason)

    def succeed(self) -> None:
        """The store answered a probe."""
        self._open_since, self.reason = None, ""

    def fail(self, reason: str) -> None:
        """The store did not answer; `reason` is for a client, so it names no address and no secret."""
        self.reason = reason
        if self._open_since is None:
            self._open_since = time.monotonic()
