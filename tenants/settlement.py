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
from tenants import keyspace, refusals, scripts, tasks
from tenants.journal import Journal
from tenants.store import TenantStore

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 100_000
BATCH = 64
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
MOST_REFUSALS = 5
MOST_ENDED = 64
ADOPT_EVERY_S = 10.0
_SETTLE = scripts.load("settle")


@dataclass(slots=True)
class Settlement:
    """What one request used in all. `held` is the UTC day to book under where the store knows no lease of it.

    `key_id` names the request's API key where that has limits of its own; `abandoned` undoes an admission that may not
    have happened; `sent` says that the store may have booked it already.
    """

    tenant: str
    lease_id: str
    model: str
    requests: int
    images: int
    tokens_in: int
    tokens_out: int
    key_id: str = ""
    held: str = ""
    abandoned: bool = False
    sent: bool = False
    refusals: int = 0

    def call(self) -> tuple[Sequence[str], Sequence[Any]]:
        """Keys and arguments of `settle.lua`."""
        keys = [keyspace.lease(self.tenant, self.lease_id), keyspace.held(self.tenant, self.lease_id)]
        for key_id in ("", self.key_id) if self.key_id else ("",):
            keys += [
                keyspace.tokens_window(self.tenant, key_id),
                keyspace.leases(self.tenant, key_id),
                keyspace.usage(self.tenant, key_id),
            ]
        amounts = (self.requests, self.images, self.tokens_in, self.tokens_out)
        return keys, (self.lease_id, self.model, *amounts, self.held)


def today() -> str:
    """The UTC day, `yyyy-mm-dd`."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


class Settler:
    """A bounded queue and the one task that empties it, many settlements to a round trip.

    While the store cannot take them, each is also written to the `journal`, before its request is answered.
    """

    def __init__(self, store: TenantStore, limit: int = QUEUE_LIMIT, journal: Journal | None = None) -> None:
        self._store = store
        self._limit = limit
        self._journal = journal
        self._queue: deque[Settlement] = deque()
        self._ended: dict[str, dict[str, None]] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._adopter: asyncio.Task[None] | None = None
        self._stuck = False
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    async def start(self) -> None:
        """Take over what gateways of this machine left behind, now and whenever one ends."""
        if self._journal is not None and self._adopter is None:
            self._adopter = asyncio.create_task(self._adopt(self._journal), name="tenants-adoption")

    def put(self, settlement: Settlement, *, keep: bool = False) -> None:
        """Queue a settlement; never blocks. Beyond the limit the oldest is dropped, and the log says so.

        Args:
            keep: journal it although the store seems to be there.
        """
        if len(self._queue) >= self._limit:
            self._forget(self._queue.popleft())
            self._dropped += 1
            if self._dropped == 1 or self._dropped % 1000 == 0:
                logger.error("settlement queue is full: %d settlements dropped", self._dropped)
        self._queue.append(settlement)
        if keep or self._stuck or settlement.held:
            self._keep(settlement)
        self._ended.setdefault(settlement.tenant, {})[settlement.lease_id] = None
        self._idle.clear()
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="tenants-settlement")

    def _keep(self, settlement: Settlement) -> None:
        if self._journal is not None:
            self._journal.append(settlement)

    def ended(self, tenant: str) -> list[str]:
        """Leases of this process that have ended but are not settled, so that the next admission can pass over them."""
        leases = self._ended.get(tenant)
        return list(leases)[:MOST_ENDED] if leases else []

    async def drain(self, timeout_s: float) -> bool:
        """Wait until all is settled; False if that takes longer than `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self._idle.is_set()

    async def aclose(self, timeout_s: float) -> None:
        """Settle what is left within `timeout_s`; what then remains is for the next gateway, if a journal keeps it."""
        adopter, self._adopter = self._adopter, None
        await tasks.end(adopter)
        drained = await self.drain(timeout_s)
        task, self._task = self._task, None
        await tasks.end(task)
        if not drained:
            fate = "lost" if self._journal is None else "kept for the next gateway"
            logger.error("closing with %d settlements that the store has not taken: %s", len(self._queue), fate)
        if self._journal is not None:
            if not drained:
                self._journal.clear()
                for settlement in self._queue:
                    self._keep(settlement)
            self._journal.close(keep=not drained)

    async def _adopt(self, journal: Journal) -> None:
        while True:
            for entries in journal.orphans():
                logger.warning("taking over %d settlements of a gateway that has ended", len(entries))
                for entry in entries:
                    with contextlib.suppress(TypeError):  # of another version of this program
                        # It may have been sent: only a lease or its own day can still book it.
                        self.put(Settlement(**{**entry, "sent": True, "refusals": 0}), keep=True)
            await asyncio.sleep(ADOPT_EVERY_S)

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
            self._note(stuck=bool(again))
            if not self._queue:
                self._wake.clear()
                self._idle.set()
                if self._journal is not None:
                    self._journal.clear()
            if again:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_S)
            else:
                pause = FIRST_PAUSE_S

    def _note(self, *, stuck: bool) -> None:
        if stuck and not self._stuck:
            for settlement in self._queue:
                if not settlement.held:  # those that are held were kept when they came
                    self._keep(settlement)
        self._stuck = stuck

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
            if refusals.passes(answer):
                return True
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
