"""Settlements on their way to the store: off the request's path, repeated until the store has them, booked once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

from redis.crc import key_slot

from policies.errors import Unavailable
from tenants.metering.journal import Journal
from tenants.metering.rejections import Rejections
from tenants.metering.settlement import STEPS, Answer, Settlement, State, Step, answer_of, call
from tenants.records.settings import DEFAULTS
from tenants.store import scripts, tasks
from tenants.store.store import TenantStore

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 100_000
BATCH = 64
MOST_OF_ONE = 32
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
APART_PAUSE_S = 30.0
"""Between two attempts to book what an admin must mend first."""
MOST_ENDED = 64
ADOPT_EVERY_S = 10.0
_SETTLE = scripts.load("metering/meters", "metering/settle")


@dataclass(slots=True)
class _Lane:
    """The settlements of one slot, in their order; after a failure none is sent before `due` (loop time)."""

    queue: deque[Settlement] = field(default_factory=deque)
    pause: float = 0.0
    due: float = 0.0


class Settler:
    """Bounded queues, one for each slot of the store, and the one task that empties them, many at a time.

    While a slot cannot take its settlements, each is also written to the `journal`, before its request is answered.
    `booked` is told whose settlement was.
    """

    def __init__(
        self,
        store: TenantStore,
        limit: int = QUEUE_LIMIT,
        journal: Journal | None = None,
        booked: Callable[[str], None] = lambda tenant: None,
    ) -> None:
        self.kept = DEFAULTS
        self._store = store
        self._limit = limit
        self._journal = journal
        self._booked_of = booked
        self._lanes: dict[int, _Lane] = {}
        self._apart: deque[tuple[float, Settlement]] = deque()
        self._rejections = Rejections(store)
        self._count = 0
        self._ended: dict[str, dict[str, None]] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._adopter: asyncio.Task[None] | None = None
        self._dropped = 0

    def __len__(self) -> int:
        return self._count

    async def start(self) -> None:
        """Take over what gateways of this machine left behind, now and whenever one ends."""
        if self._journal is not None and self._adopter is None:
            await self._learn_store(self._journal)
            self._adopter = asyncio.create_task(self._adopt(self._journal), name="tenants-adoption")

    def put(self, settlement: Settlement, *, keep: bool = False) -> None:
        """Queue a settlement; never blocks. Beyond the limit the oldest of its slot is dropped, and the log says so.

        Args:
            keep: journal it although the store seems to be there.
        """
        lane = self._lane(settlement)
        if self._count >= self._limit:
            self._drop_oldest(lane)
        lane.queue.append(settlement)
        self._count += 1
        if keep or lane.pause or settlement.state in (State.HELD, State.UNSURE):
            self._keep(settlement)
        self._ended.setdefault(settlement.tenant, {})[settlement.id] = None
        self._start_sending()

    def reject(self, tenant: str, parts: Iterable[str], model: str) -> None:
        """Count a refused request in its tenant's usage, some at a time: a storm of refusals costs the store little."""
        self._rejections.add(tenant, parts, model)
        self._start_sending()

    def ended(self, tenant: str) -> list[str]:
        """Requests of this process that ended but are not settled, so that the next admission can pass over them."""
        own = self._ended.get(tenant)
        return list(islice(own, MOST_ENDED)) if own else []

    def pending(self, tenant: str, request_id: str) -> bool:
        """Whether a request that ended is not settled yet."""
        return request_id in self._ended.get(tenant, ())

    async def drain(self, timeout_s: float) -> bool:
        """Wait until all is settled that can be; False if that takes longer than `timeout_s`."""
        self._rejections.due = 0.0
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self._idle.is_set()

    async def aclose(self, timeout_s: float) -> None:
        """Settle what is left within `timeout_s`; what then remains is for the next gateway, if a journal keeps it."""
        adopter, self._adopter = self._adopter, None
        await tasks.end(adopter)
        await self.drain(timeout_s)
        task, self._task = self._task, None
        await tasks.end(task)
        left = [*(own for lane in self._lanes.values() for own in lane.queue), *(own for _, own in self._apart)]
        if left:
            fate = "lost" if self._journal is None else "kept for the next gateway"
            logger.error("closing with %d settlements that the store has not taken: %s", len(left), fate)
        if self._journal is not None:
            if left:
                self._journal.clear()
                for settlement in left:
                    self._keep(settlement)
            self._journal.close(keep=bool(left))

    def _lane(self, settlement: Settlement) -> _Lane:
        slot = key_slot(settlement.tenant.encode()) if self._store.clustered else 0
        return self._lanes.setdefault(slot, _Lane())

    def _start_sending(self) -> None:
        self._idle.clear()
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="tenants-settlement")

    def _drop_oldest(self, lane: _Lane) -> None:
        fullest = lane if lane.queue else max(self._lanes.values(), key=lambda other: len(other.queue))
        if not fullest.queue:
            return
        self._forget(fullest.queue.popleft())
        self._count -= 1
        self._dropped += 1
        if self._dropped == 1 or self._dropped % 1000 == 0:
            logger.error("settlement queue is full: %d settlements dropped", self._dropped)

    def _keep(self, settlement: Settlement) -> None:
        if self._journal is not None:
            self._journal.append(settlement)

    async def _learn_store(self, journal: Journal) -> None:
        """Ask the store which it is: what is held for it is booked there and nowhere else."""
        with contextlib.suppress(Unavailable):
            journal.store = journal.store or await self._store.identity()

    async def _adopt(self, journal: Journal) -> None:
        while True:
            await self._learn_store(journal)
            for settlements in journal.orphans() if journal.store else ():
                logger.warning("taking over %d settlements of a gateway that has ended", len(settlements))
                for settlement in settlements:
                    self.put(settlement, keep=True)
            await asyncio.sleep(ADOPT_EVERY_S)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            await self._rejections.send(loop.time(), self.kept.usage_days)
            if batch := self._next(loop.time()):
                await self._send(batch, loop.time())
            else:
                if not self._count and not self._rejections:
                    self._idle.set()
                    if self._journal is not None and not self._apart:
                        self._journal.clear()
                await self._until_due(loop.time())

    async def _until_due(self, now: float) -> None:
        """Wait for something to send."""
        times = [lane.due for lane in self._lanes.values() if lane.queue] + [due for due, _ in islice(self._apart, 1)]
        if self._rejections:
            times.append(self._rejections.due)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(times) - now) if times else None):
                await self._wake.wait()

    def _next(self, now: float) -> list[Settlement]:
        """What to send now: of all slots that are well together, of one that is not alone."""
        while self._apart and self._apart[0][0] <= now:
            _, settlement = self._apart.popleft()
            self._lane(settlement).queue.appendleft(settlement)
            self._count += 1
        batch: list[Settlement] = []
        for slot, lane in list(self._lanes.items()):
            if lane.pause or len(batch) == BATCH:
                continue
            while lane.queue and len(batch) < BATCH:
                batch.append(lane.queue.popleft())
            # To the end, so that the next round begins with the slots that this one did not reach.
            del self._lanes[slot]
            if lane.queue:
                self._lanes[slot] = lane
        if not batch:
            due = [lane for lane in self._lanes.values() if lane.queue and lane.due <= now]
            lane = min(due, key=lambda lane: lane.due, default=_Lane())
            batch = [lane.queue.popleft() for _ in range(min(BATCH, len(lane.queue)))]
        self._count -= len(batch)
        return batch

    async def _send(self, batch: list[Settlement], now: float) -> None:
        try:
            answers = await self._answers(batch)
        except BaseException:
            self._put_back(batch)
            raise
        again = []
        for settlement, answer in zip(batch, answers, strict=True):
            match STEPS[settlement.state][answer]:
                case Step.AGAIN:
                    again.append(settlement)
                    continue
                case Step.APART:
                    self._set_apart(settlement, now)
                case Step.LOST:
                    logger.error(
                        "a settlement of tenant %s is lost: whether it is booked nobody knows", settlement.tenant
                    )
                    self._forget(settlement)
                case Step.DONE:
                    self._forget(settlement)
                    self._booked_of(settlement.tenant)
            lane = self._lane(settlement)
            lane.pause, lane.due = 0.0, 0.0
        self._note_failed(again, now)

    def _put_back(self, settlements: list[Settlement]) -> None:
        for settlement in reversed(settlements):
            self._lane(settlement).queue.appendleft(settlement)
        self._count += len(settlements)

    def _note_failed(self, again: list[Settlement], now: float) -> None:
        self._put_back(again)
        failed = {id(lane): lane for lane in map(self._lane, again)}
        for lane in failed.values():
            if not lane.pause:  # from now on they are kept as they come
                for settlement in lane.queue:
                    if settlement.state not in (State.HELD, State.UNSURE):
                        self._keep(settlement)
            lane.pause = min(lane.pause * 2, LONGEST_PAUSE_S) if lane.pause else FIRST_PAUSE_S
            lane.due = now + lane.pause

    def _set_apart(self, settlement: Settlement, now: float) -> None:
        if settlement.id in self._ended.get(settlement.tenant, ()):
            logger.error("usage of tenant %s cannot be booked until its counters are mended", settlement.tenant)
            self._keep(settlement)
            self._forget(settlement)
        self._apart.append((now + APART_PAUSE_S, settlement))

    async def _answers(self, batch: list[Settlement]) -> list[Answer]:
        """Send a batch and name what came of each."""
        now, groups, answers = time.time(), _by_tenant(batch), {}
        for own, found in zip(groups, await self._booked(groups, now), strict=True):
            if found == [Answer.BROKEN] * len(own) and len(own) > 1:
                # One broken counter, of a day that has passed for example, must not set all of them apart.
                found = [answer for (answer,) in await self._booked([[one] for one in own], now)]
            answers.update({id(settlement): answer for settlement, answer in zip(own, found, strict=True)})
        for settlement in batch:
            if answers[id(settlement)] is Answer.SILENT:
                settlement.sent_at = settlement.sent_at or now
        return [answers[id(settlement)] for settlement in batch]

    async def _booked(self, groups: list[list[Settlement]], now: float) -> list[list[Answer]]:
        """What the store says to each settlement of each group, a group by one script."""
        try:
            raw = await self._store.run_many(_SETTLE, [call(own, now, self.kept) for own in groups], partial=True)
        except Unavailable as error:
            raw = [error] * len(groups)
        return [
            [answer_of(one) for one in (found if isinstance(found, list) else [found] * len(own))]
            for own, found in zip(groups, raw, strict=True)
        ]

    def _forget(self, settlement: Settlement) -> None:
        own = self._ended.get(settlement.tenant)
        if own is not None:
            own.pop(settlement.id, None)
            if not own:
                del self._ended[settlement.tenant]


def _by_tenant(batch: list[Settlement]) -> list[list[Settlement]]:
    """Settlements of a tenant together, a few dozen at most: nothing else runs beside a script."""
    groups: dict[str, list[list[Settlement]]] = {}
    for settlement in batch:
        own = groups.setdefault(settlement.tenant, [[]])
        if len(own[-1]) == MOST_OF_ONE:
            own.append([])
        own[-1].append(settlement)
    return [group for own in groups.values() for group in own]
