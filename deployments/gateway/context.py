"""What one request has learnt on its way through the gateway."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from policies.errors import Unauthenticated
from tenants.live.entitlements import Entitlements


class RequestContext:
    """One request's, from its first byte to the headers of its answer.

    Attributes:
        number: the request's id.
        entitlements: of who calls, once the key is known.
        until: loop time at which its deadline ends, once it has begun.
        headers: of its answer, whatever its status.
        sign: makes the signed receipt of an answer that begins, once a model's terms are resolved.
        limits: makes the `x-ratelimit-*` of answers to which no admission gave them: a refusal, or one without a model.
        model_seconds: spent waiting for a model, or for several at once.
    """

    def __init__(self, number: str = "") -> None:
        self.number = number
        self.entitlements: Entitlements | None = None
        self.until: float | None = None
        self.headers: dict[str, str] = {}
        self.sign: Callable[[], str | None] | None = None
        self.limits: Callable[[], dict[str, str]] | None = None
        self.model_seconds = 0.0
        self._started = self._waiting_since = time.perf_counter()
        self._waiting = 0

    @property
    def caller(self) -> Entitlements:
        """Who calls. Raises Unauthenticated while nobody has said."""
        if self.entitlements is None:
            raise Unauthenticated("This request has not been authenticated.")
        return self.entitlements

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within, a model is waited for."""
        if not self._waiting:
            self._waiting_since = time.perf_counter()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.model_seconds += time.perf_counter() - self._waiting_since

    def overhead_ms(self) -> float:
        """Milliseconds since the request arrived, less those spent waiting for a model."""
        return (time.perf_counter() - self._started - self.model_seconds) * 1000.0
