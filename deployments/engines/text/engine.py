"""Who runs on the model when: fair admission to seats and memory, answers out, cancelling at once."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import aclosing, suppress
from typing import Any

from torch import Tensor

from deployments.config import ModelSpec
from deployments.contracts.spending import Meter
from deployments.engines.live import LiveRows
from deployments.engines.text.admission import SEATS_PER_ROW, WaitingLine
from deployments.engines.text.grammars.matcher import Matcher
from deployments.engines.text.loading.language_models import LanguageModel
from deployments.engines.text.manager import CPU_CACHE_GIB, cache_pages, start_manager
from deployments.engines.text.prefix_sharing import salted_id
from deployments.engines.text.request import Progress, Request, failed, stopped
from deployments.engines.text.sampling import SamplingParams, seed_key
from deployments.engines.text.scheduler import FairScheduler
from deployments.engines.text.seat import Seat
from deployments.engines.text.seats import Seats
from deployments.engines.text.token_shares import TokenShares
from policies.audit import LevelAudit
from policies.errors import ServiceError, Unavailable
from policies.head.slots import Setting
from policies.terms import Share

logger = logging.getLogger("deployments.engines.text")

CLEAN = Setting()
"""Level 1.0."""


class TextEngine:
    """Transformers' continuous batching in its own thread, fair between flows, for callers on one asyncio loop.

    Args:
        model: the language model.
        spec: `max_batch_size` rows of a step, `max_queue_per_tenant` waiting requests of a flow.
        context: most tokens of a sequence.
        live: where final-layer inputs are kept.
        counts: told of finished answers, by level.
        room: part of the device's free memory that the cache may take with a step; None: a constant, as on a CPU.

    Attributes:
        draw_secret: what seeded draws are keyed by besides their seed; this process's own until a head is there.
        seats: of the running sequences; the head goes there.
    """

    def __init__(
        self,
        model: LanguageModel,
        spec: ModelSpec,
        context: int,
        live: LiveRows,
        counts: LevelAudit,
        room: float | None = None,
    ) -> None:
        rows = spec.max_batch_size
        self.draw_secret = secrets.token_bytes(32)
        self.seats = Seats(model.model, model.final, rows * SEATS_PER_ROW, rows, live, counts, model.end_tokens)
        shares = TokenShares()
        self._running: dict[str, Request] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._manager: Any
        gib = spec.cache_gib or (CPU_CACHE_GIB if room is None else None)
        self._manager, self._faults, pages = start_manager(
            model,
            self.seats,
            rows=rows,
            pages=cache_pages(model, context, rows * SEATS_PER_ROW, gib),
            context=context,
            room=None if gib else room,
            shares=shares,
            on_read=self._read_in_engine,
            on_cancelled=self._cancelled_in_engine,
        )
        self._scheduler: FairScheduler = self._manager.batch_processor.scheduler
        self.line = WaitingLine[Request](shares, bound=spec.max_queue_per_tenant, rows=rows, pages=pages)

    @property
    def running(self) -> int:
        """Sequences that hold a seat."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return len(self.line)

    async def run(
        self,
        prompt: list[int],
        params: SamplingParams,
        setting: Setting,
        share: Share,
        choice: int = 0,
        features: list[Tensor] | None = None,
        matcher: Matcher | None = None,
        meter: Meter | None = None,
    ) -> AsyncGenerator[Progress]:
        """Answer one prompt, step by step, the steps that read it included. Closing it cancels.

        Args:
            choice: which of several answers of one seed this is.
            features: gets the final layer's input [H] float32 of each step.
            matcher: keeps the answer to its grammar, and says whether it could.
            meter: told what is used, until the answer is out of the engine.

        Raises:
            Unavailable: no head is there yet for the setting, too many of this flow are waiting, or the engine has
                stopped.
            ServiceError: the engine failed on this answer alone.
        """
        self.healthy()
        held = await self._held(setting)
        self._loop = asyncio.get_running_loop()
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        key = seed_key(self.draw_secret, seed, choice)
        seat = Seat(setting, params, key, prompt, held, features=features, flow=share.flow, matcher=matcher)
        request = Request(share.lane, prompt, params, seat, salted_id(share.flow, params.reads), meter or Meter())
        self.line.push(share.lane, share.pull, request.pages, request)
        request.meter.open()
        try:
            self._admit()
            last = False
            while not last:
                event = await request.events.get()
                if isinstance(event, ServiceError):
                    raise event
                last = event.last
                yield event
        finally:
            self._abandon(request)

    async def _held(self, setting: Setting) -> list[Future[Tensor]]:
        """What a setting needs of the head; a level's first request waits for its matrix, a second for a large
        vocabulary."""
        head = self.seats.head
        if head is None and setting != CLEAN:
            raise Unavailable("No level below 1.0 is served yet.", retry_after=5, code="levels_pending")
        held = [] if head is None else head.prepare(setting)
        await asyncio.gather(*map(asyncio.wrap_future, held))
        return held

    async def greedy(
        self, prompt: list[int], tokens: int, setting: Setting = CLEAN, features: list[Tensor] | None = None
    ) -> list[int]:
        """A whole greedy answer of at most so many tokens, for whoever runs the engine alone; `features` as `run`."""
        params, share = SamplingParams(max_tokens=tokens, temperature=0.0), Share(flow="greedy")
        answer: list[int] = []
        async with aclosing(self.run(prompt, params, setting, share, features=features)) as pieces:
            async for piece in pieces:
                answer += piece.tokens
        return answer

    def fault(self) -> BaseException | None:
        """What the engine's loop died of, or the last sequence that failed alone."""
        error: BaseException | None = self._manager.background_thread_status.fatal_error
        return error or self._faults.last

    def healthy(self, most_s: float = math.inf) -> None:
        """Check that the engine's loop runs, and has come by within so many seconds.

        Raises:
            Unavailable: it does not; only a new replica helps.
        """
        status, beat = self._manager.background_thread_status, self._scheduler.beat
        hangs = beat is not None and time.monotonic() - beat > most_s
        if self._closed or not self._manager.is_running() or status.fatal_error is not None or hangs:
            raise stopped()

    def close(self) -> None:
        """Stop the engine for good; what is running or waiting fails as unavailable. Calling it again does nothing.

        Waits until the step under way is over, 60 seconds at most: a thread that hangs longer is waited for once more
        by `destroy`, without end, so that the model is never handed on while a step still runs on it.

        Raises:
            RuntimeError: called from within a pause of the engine's loop, which could never end.
        """
        if not self._closed:
            self._closed = True
            self._manager.stop(block=True, timeout=60, hard_stop=True)
            self._manager.destroy()
            self.seats.close()

    def _admit(self) -> None:
        """Give seats to those whose turn it is, while there are seats and memory for their whole answers."""
        while request := self.line.pop():
            self._start(request)

    def _start(self, request: Request) -> None:
        self._running[request.id] = request
        request.number = self.seats.sit(request.seat)
        accepted = None
        try:
            # The handler comes first: the engine may answer before add_request returns.
            self._manager.register_result_handler(request.id, lambda output: self._told(request, output))
            accepted = self._manager.add_request(
                request.prompt,
                request_id=request.id,
                max_new_tokens=request.params.drawn,
                streaming=True,
                eos_token_id=-1 if request.params.ignore_eos else None,
                seat=request.number,
                flow=request.flow,
                reads=request.params.reads,
            )
        finally:
            if accepted is None:
                self._leave(request, stopped())

    def _told(self, request: Request, output: Any) -> None:
        try:
            self._on_output(request, output)
        except Exception:  # of this request: those that are told after it must hear of theirs
            logger.exception("a request's tokens could not be handed on")
            if output.is_finished():
                self._leave(request, failed())
            else:
                request.events.put_nowait(failed())  # whoever reads it cancels

    def _on_output(self, request: Request, output: Any) -> None:
        if output.error is not None:
            own = request.id in self._faults.own
            self._faults.own.discard(request.id)
            self._leave(request, failed() if own else stopped())
            return
        request.drew(output.generated_tokens, output.is_finished())
        if output.is_finished():
            self._leave(request)

    def _abandon(self, request: Request) -> None:
        """The caller is gone: nothing is left of a finished request, a waiting or running one is cancelled."""
        if request.finished:
            return
        if self.line.discard(request.flow, request):
            request.meter.close()
            self._admit()
        elif request.id in self._running:
            self._manager.cancel_request(request.id)

    def _read_in_engine(self, request_id: str, left: int, step: int) -> None:
        """In the engine's thread: all but `left` tokens of a request's prompt are in a step, which has `step` of them,
        or read before it."""
        self._in_loop(request_id, lambda request: request.read(left, step))

    def _cancelled_in_engine(self, request_id: str) -> None:
        """In the engine's thread: a cancelled request is out of it, so its seat and memory are free."""
        self._in_loop(request_id, self._leave)

    def _in_loop(self, request_id: str, call: Callable[[Request], None]) -> None:
        def now() -> None:
            if request := self._running.get(request_id):
                call(request)

        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed, and nobody waits
                self._loop.call_soon_threadsafe(now)

    def _leave(self, request: Request, error: ServiceError | None = None) -> None:
        """A request is done with the engine, in whatever way: free what it held, and let the next one in."""
        if request.finished:
            return
        request.finished, drawn = True, request.told
        if self._running.pop(request.id, None) and request.number is not None:
            self.line.release(request.flow, request.pages)
            drawn = max(drawn, self.seats.leave(request.number))  # a refit counts steps anew
            self._manager.output_router.result_handlers.pop(request.id, None)
        request.meter.close(drawn)
        if error is None:
            self._admit()
            return
        request.events.put_nowait(error)
        try:
            self.healthy()
        except Unavailable:
            self._turn_away()
        else:
            self._admit()

    def _turn_away(self) -> None:
        """The engine is gone for those that wait, too."""
        for waiting in self.line.drain():
            waiting.finished = True
            waiting.meter.close()
            waiting.events.put_nowait(stopped())
