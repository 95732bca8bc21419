"""Settlements on their way to the store: off the request's path, repeated until the store has them, booked once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis.exceptions import ResponseError

from policies.errors import Unavailable
from tenants import keyspace, scripts
from tenants.store import TenantStore

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 100_000
BATCH = 64
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
MOST_REFUSALS = 5
MOST_ENDED = 64
_SETTLE = scripts.load("settle")


@dataclass(slots=True)
class Settlement:
    """What one request used in all. `held` is the UTC day to book under where the store knows no lease of it."""

    tenant: str
    lease_id: str
    model: str
    requests: int
    images: int
    tokens_in: int
    tokens_out: int
    held: str = ""
    abandoned: bool = False
    sent: bool = False
    refusals: int = 0

    def call(self) -> tuple[Sequence[str], Sequence[Any]]:
        """Keys and arguments of `settle.lua`."""
        keys = (
            keyspace.tokens_window(self.tenant),
            keyspace.leases(self.tenant),
            keyspace.lease(self.tenant, self.lease_id),
            keyspace.held(self.tenant, self.lease_id),
            keyspace.usage(self.tenant),
        )
        amounts = (self.requests, self.images, self.tokens_in, self.tokens_out)
        return keys, (self.lease_id, self.model, *amounts, self.held)


def today() -> str:
    """The UTC day, `yyyy-mm-dd`."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


class Settler:
    """A bounded queue and the one task that empties it, many settlements to a round trip."""

    def __init__(self, store: TenantStore, limit: int = QUEUE_LIMIT) -> None:
        self._store = store
        self._limit = limit
        self._queue: deque[Settlement] = deque()
        self._ended: dict[str, dict[str, None]] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, settlement: Settlement) -> None:
        """Queue a settlement; never blocks. Beyond the limit the oldest is dropped, and the log says so."""
        if len(self._queue) >= self._limit:
            self._forget(self._queue.popleft())
            self._dropped += 1
            if self._dropped == 1 or self._dropped % 1000 == 0:
                logger.error("settlement queue is full: %d settlements dropped", self._dropped)
        self._queue.append(settlement)
        self._ended.setdefault(settlement.tenant, {})[settlement.lease_id] = None
        self._idle.clear()
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="tenants-settlement")

    def ended(self, tenant: str) -> list[str]:
        """Leases of this process that have ended but are not settled, so that the next admission can pass over them."""
        leases = self._ended.get(tenant)
        return list(leases)[:MOST_ENDED] if leases else []

    async def drain(self, timeout_s: float) -> bool:
        """Wait until all is settled; False if that takes longer than `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return self._idle.is_set()

    async def aclose(self, timeout_s: float) -> None:
        """Settle what is left within `timeout_s`; what then remains is lost, and the log says how much."""
        if not await self.drain(timeout_s):
            logger.error("closing with %d settlements that the store has not taken", len(self._queue))
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            await self._wake.wait()
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            try:
                again = await self._send(batch)
            except BaseException:
                self._queue.extendleft(reversed(batch))
                raise
            self._queue.extendleft(reversed(again))
            if not self._queue:
                self._wake.clear()
                self._idle.set()
            if again:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_S)
            else:
                pause = FIRST_PAUSE_S

    async def _send(self, batch: list[Settlement]) -> list[Settlement]:
        """Send a batch; those to send again are returned."""
        try:
            answers = await self._store.run_many(_SETTLE, [settlement.call() for settlement in batch])
        except Unavailable as error:
            # Without a cause the breaker spoke and nothing was sent; with one the store may have booked all the same.
            for settlement in batch:
                settlement.sent = settlement.sent or error.__cause__ is not None
            return batch
        return [
            settlement for settlement, answer in zip(batch, answers, strict=True) if self._again(settlement, answer)
        ]

    def _again(self, settlement: Settlement, answer: Any) -> bool:
        if isinstance(answer, ResponseError):
            settlement.refusals += 1
            if settlement.refusals < MOST_REFUSALS:
                return True
            logger.error("settlement of tenant %s refused: %s", settlement.tenant, str(answer)[:60])
        elif answer == -1 and not settlement.sent and not settlement.abandoned:
            # First attempt and no lease: the store lost the booking (a failover), so book the whole of it.
            settlement.held = today()
            return True
        self._forget(settlement)
        return False

    def _forget(self, settlement: Settlement) -> None:
        leases = self._ended.get(settlement.tenant)
        if leases is not None:
            leases.pop(settlement.lease_id, None)
            if not leases:
                del self._ended[settlement.tenant]
