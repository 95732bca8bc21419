"""One batch from its file to its output, by whichever gateway has it: all that is done is in the store at once."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass

from deployments.gateway.batches.lines import Answer, Ask, Caller, Fault, Line, parsed, result, split, unanswered
from deployments.gateway.batches.output import write_outputs
from deployments.gateway.batches.pace import Turns, wait_for_limits
from deployments.gateway.batches.validation import validate
from deployments.gateway.batches.verdict import Again, Stop, judge
from deployments.gateway.service import Gateway
from policies.errors import NotEntitled, NotFound, Unauthenticated, Unavailable
from tenants.batches.batches import Asked, Batch, Batches
from tenants.batches.files import Files, Space
from tenants.live.entitlements import Entitlements

logger = logging.getLogger("deployments.gateway.batches")

_AWAY_S, _LOOK_S = 2.0, 0.2
GONE = Stop("input_file_not_found", "The batch's input file has expired.")
EXPIRED = Stop("batch_expired", "This request could not be made before the batch's completion window ended.")
FULL = Stop("batch_output_full", "There is no room for more output: delete files, and send the rest as a new batch.")


@dataclass(frozen=True)
class Desk:
    """What the batches of one gateway are worked on with."""

    service: Gateway
    files: Files
    batches: Batches
    turns: Turns
    ask: Ask
    token: str

    def space(self) -> Space:
        """How much may be stored now."""
        now = self.service.settings.now
        return Space(now.batch_files, now.batch_tenant_bytes, now.batch_total_bytes)


class LostError(Exception):
    """Another gateway has the batch, or it is gone."""


class Work:
    """A batch that this gateway has.

    Args:
        order: held while its lines run, so that a tenant's batches come one after the other.
    """

    def __init__(self, desk: Desk, tenant: str, batch_id: str, order: asyncio.Lock) -> None:
        self._desk, self._tenant, self._id, self._order = desk, tenant, batch_id, order
        self._stop: Stop | None = None
        self._cancelled = self._leaving = False
        self._ended = asyncio.Event()
        self._size, self._room = 0, sys.maxsize
        """Bytes of results, and most of them."""

    def told(self, status: str) -> None:
        """The batch has this status now, as its lease's renewal says."""
        if status == "cancelling":
            self._cancelled = True
            self._ended.set()

    def leave(self) -> None:
        """Begin no further line: this gateway ends."""
        self._leaving = True
        self._ended.set()

    async def run(self) -> None:
        """Work until the batch has ended, or is another gateway's; an outage of the store is waited for."""
        while True:
            try:
                with suppress(LostError, NotFound):
                    await self._run()
                return
            except Unavailable:
                if self._leaving:
                    return
                await asyncio.sleep(_AWAY_S)

    async def _run(self) -> None:
        batch = await self._desk.batches.get(self._tenant, self._id)
        self.told(batch.status)
        if batch.status == "validating":
            await self._validate(batch)
            batch = await self._desk.batches.get(self._tenant, self._id)
            self.told(batch.status)
        if batch.status == "in_progress":
            await self._in_turn(batch)
            if self._leaving:
                return
            batch = await self._desk.batches.get(self._tenant, self._id)
        elif batch.status == "finalizing":  # begun by a gateway that has died
            codes = [fault["code"] for fault in batch.errors]
            self._stop = next((stop for stop in (EXPIRED, FULL) if stop.code in codes), None)
        if not batch.ended:
            await self._finish(batch)

    async def _in_turn(self, batch: Batch) -> None:
        """Ask its lines once no other batch of the tenant is at it."""
        while self._order.locked() and not self._over(batch.asked):
            await self._pause(_LOOK_S)
        if not self._over(batch.asked):
            async with self._order:
                await self._lines(batch)

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until the batch is to end."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)

    async def _validate(self, batch: Batch) -> None:
        found = await validate(self._desk.files, batch.asked, self._desk.service.settings.now.batch_lines)
        if isinstance(found, int):
            await self._move(batch.asked, "in_progress", before="validating", total=found)
        else:
            await self._move(batch.asked, "failed", before="validating", errors=_faults(found))

    async def _lines(self, batch: Batch) -> None:
        """Ask every line that has no result."""
        self._size = batch.size
        self._room = await self._desk.files.left(self._tenant, self._desk.space())
        done = await self._desk.batches.done(batch.asked)
        lines = self._undone(batch.asked, done)
        taking = asyncio.Lock()

        async def worker() -> None:
            while not self._over(batch.asked):
                async with taking:
                    line = await anext(lines, None)
                if line is None:
                    return
                await self._line(batch.asked, line)

        tasks = [asyncio.create_task(worker()) for _ in range(self._desk.service.settings.now.batch_at_once)]
        try:
            # Each to its end: what one of them has under way is paid for, whatever becomes of another.
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await lines.aclose()
        errors = [error for error in ended if isinstance(error, BaseException)]
        for error in sorted(errors, key=lambda error: isinstance(error, NotFound)):
            if not isinstance(error, NotFound):
                raise error
            self._stop = self._stop or GONE

    async def _undone(self, asked: Asked, done: set[int]) -> AsyncGenerator[Line]:
        file = await self._desk.files.get(self._tenant, asked.input_file_id)
        async for some in split(self._desk.files.read(self._tenant, file)):
            for line in await parsed([(number, raw) for number, raw in some if number not in done], asked.endpoint):
                if isinstance(line, Line):
                    yield line

    def _over(self, asked: Asked) -> bool:
        """Whether no further line is to be asked."""
        if self._stop is None and time.time() >= asked.expires_at:
            self._stop = EXPIRED
        if self._stop is None and self._size >= self._room:
            self._stop = FULL
        return self._cancelled or self._leaving or self._stop is not None

    async def _line(self, asked: Asked, line: Line) -> None:
        """Ask one line until it has a result, which is noted."""
        caller, request_id, tries = Caller(asked.digest, asked.tenant), f"{asked.id}-{line.number}", 0
        while not self._over(asked):
            if (pause := await self._may_ask(caller)) == 0.0:
                async with self._desk.turns.turn():
                    if self._over(asked):
                        return
                    answer = await self._desk.ask(line, caller, request_id)
                match judge(answer, tries):
                    case None:
                        return await self._note(asked, line, request_id, answer)
                    case Stop() as stop:
                        self._stop = stop
                        return
                    case Again() as again:
                        pause, tries = again.after_s, tries + again.counts
            await self._pause(pause)

    async def _may_ask(self, caller: Caller) -> float:
        """Seconds to wait before the next line; 0: it may be asked now."""
        try:
            own = await self._own(caller)
            return 0.0 if own is None else await wait_for_limits(self._desk.service.admission, own)
        except Unavailable:
            return _AWAY_S

    async def _own(self, caller: Caller) -> Entitlements | None:
        """What the key may do now; None: it is out, and the batch stops."""
        try:
            return await self._desk.service.cache.known(caller.digest, caller.tenant)
        except (Unauthenticated, NotEntitled) as error:
            self._stop = Stop(error.code or "invalid_api_key", error.message)
            return None

    async def _note(self, asked: Asked, line: Line, request_id: str, answer: Answer) -> None:
        text = result(asked.id, line, request_id, answer)
        failed = answer.status >= 400
        # Its first byte says to which of the files it goes.
        noted = (b"-" if failed else b"+") + text
        keep_s = self._desk.service.settings.now.batch_keep_s
        token = self._desk.token
        while True:
            try:
                status = await self._desk.batches.record(asked, token, line.number, noted, failed=failed, keep_s=keep_s)
                break
            except Unavailable:  # it is paid for: asked again it would be so twice
                await asyncio.sleep(_AWAY_S)
        if not status:
            self.leave()
            raise LostError
        self._size += len(noted)
        self.told(status)

    async def _finish(self, batch: Batch) -> None:
        """Write the output, and end."""
        ending, asked = batch.ending or self._ending(batch), batch.asked
        if batch.status == "in_progress":
            fields = {"ending": ending}
            if self._stop is not None and ending != "cancelled":
                fields["errors"] = _faults([Fault(self._stop.code, self._stop.message)])
            if not await self._move(asked, "finalizing", before="in_progress", **fields):
                ending = "cancelled"
        # What was never asked has a line that says so, where the batch was not ended by its owner.
        unasked = None
        if self._stop in (EXPIRED, FULL) and ending != "cancelled":
            unasked = self._unasked(asked, self._stop)
        written = await write_outputs(self._desk.files, self._desk.batches, asked, unasked)
        names = {"output_file_id": written.output, "error_file_id": written.errors}
        given = {name: value for name, value in names.items() if value}
        await self._move(asked, ending, completed=written.completed, failed=written.failed, **given)
        logger.info("batch %s %s: %d lines answered, %d failed", asked.id, ending, written.completed, written.failed)

    def _ending(self, batch: Batch) -> str:
        if self._cancelled or batch.status == "cancelling":
            return "cancelled"
        if self._stop is EXPIRED:
            return "expired"
        return "completed" if self._stop in (None, FULL) else "failed"

    async def _unasked(self, asked: Asked, why: Stop) -> AsyncIterator[tuple[int, bytes]]:
        done = await self._desk.batches.done(asked)
        with suppress(NotFound):
            async for line in self._undone(asked, done):
                yield line.number, unanswered(asked.id, line, why.code, why.message)

    async def _move(self, asked: Asked, status: str, *, before: str = "", **fields: object) -> bool:
        """Whether its status was `before`. Raises LostError where any would have done."""
        moved = await self._desk.batches.move(asked, self._desk.token, status, fields=fields, before=before)
        if not moved and not before:
            raise LostError
        return moved


def _faults(faults: list[Fault]) -> str:
    return json.dumps([asdict(fault) for fault in faults])
