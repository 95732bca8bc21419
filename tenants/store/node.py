"""One server of the store: what waits for it, whether it answers, and the probe that finds out that it is back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, ResponseError, SlotNotCoveredError
from redis.exceptions import TimeoutError as RedisTimeoutError

from policies.errors import Unavailable
from tenants.store import tasks
from tenants.store.breaker import CircuitBreaker
from tenants.store.loop_timeout import LoopTimeout

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
"""A round of requests opens them all at once, and each costs five round trips before its first answer."""
FIRST_PROBE_S = 0.01
LONGEST_PROBE_S = 0.5
SETTING_UP = 2.0
"""How much longer than an answer a new connection may take: names, TLS and Sentinel come before it."""
AWAY = (RedisConnectionError, RedisTimeoutError, RedisClusterException, SlotNotCoveredError, OSError, TimeoutError)
T = TypeVar("T")


class Node:
    """The only server, or one of a Cluster, whose absence fails what lives on it and nothing else.

    Args:
        address: for logs; it holds no credentials.
        ping: asks it for an answer; raises one of `AWAY`, or ResponseError, where there is none.
        missed: called after each probe that failed.
    """

    def __init__(
        self,
        address: str,
        timeout_s: float,
        ping: Callable[[], Awaitable[None]],
        missed: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.address = address
        self.breaker = CircuitBreaker()
        self.refusing = ""
        self._timeout_s = timeout_s
        self._ping = ping
        self._missed = missed
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._prober: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        """Stop asking whether it is back."""
        prober, self._prober = self._prober, None
        await tasks.end(prober)

    async def guarded(
        self, operation: Callable[[], Awaitable[T]], cold: Callable[[], bool], patience: float = 1.0
    ) -> T:
        """Run an operation within the time of an answer. Raises Unavailable, at once while the server is away.

        Args:
            cold: whether it must first set up a connection.
            patience: how many times as long it may take.
        """
        async with self._slots:
            # Asked with a slot in hand: those that waited for one need not each find out that the store is gone.
            self.breaker.check()
            patience = max(patience, SETTING_UP if cold() else 1.0)
            try:
                async with LoopTimeout(patience * self._timeout_s):
                    return await operation()
            except AWAY as error:
                if self.breaker.closed:
                    logger.warning("tenant store %s is away: %s", self.address, type(error).__name__)
                self.breaker.fail("The tenant store is away; try again shortly.")
                if self._prober is None or self._prober.done():
                    self._prober = asyncio.create_task(self._probe(), name="tenants-probe")
                raise Unavailable(self.breaker.reason) from error

    async def _probe(self) -> None:
        """Ask until it answers: no request waits for that, and an idle gateway heals as well."""
        pause = FIRST_PROBE_S
        while not self.breaker.closed:
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PROBE_S)
            try:
                # The first sets a connection up, which may take longer; the second is what a request would meet.
                for patience in (SETTING_UP, 1.0):
                    async with LoopTimeout(patience * self._timeout_s):
                        await self._ping()
            except (*AWAY, ResponseError):
                if self._missed is not None:
                    await self._missed()
                continue
            logger.warning("tenant store %s is back after %.1f s", self.address, self.breaker.open_for())
            self.breaker.succeed()
