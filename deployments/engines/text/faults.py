"""A step of the text engine that fails: undone and tried again one sequence at a time, so that a fault is one's own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState, RequestStatus

from deployments.engines.errors import first_line
from deployments.engines.text.prefix_sharing import salted_id
from deployments.engines.text.sampling import SamplingParams
from deployments.engines.text.seat import Seat
from deployments.engines.text.seats import Seats
from policies.head.slots import Setting

logger = logging.getLogger("deployments.engines.text")

MOST_IN_A_ROW = 3
"""Sequences that fail alone, one after the other, before a sound one is tried in between."""
_PROBE = "probe"


class Faults:
    """Stands around the engine's loop, in its thread.

    What a step raises is first taken back: every sequence of it is as it was before. They then have a step each; one
    that fails alone is failed alone, and the others go on together. Where several fail alone in a row, a sequence of
    one token is tried that asks for nothing, and only where that fails too, or the device is lost, the engine ends.

    Args:
        manager: of transformers' continuous batching, not started yet.
        seats: told to take a step back.

    Attributes:
        own: ids of requests that failed alone, until somebody takes them out.
        last: what the last one failed of.
    """

    def __init__(self, manager: Any, seats: Seats) -> None:
        self._seats, self._processor = seats, manager.batch_processor
        self._scheduler = self._processor.scheduler
        self._body: Callable[..., bool] = manager._generation_loop_body
        self._in_a_row = 0
        self._probe: tuple[str, int] | None = None
        self.own: set[str] = set()
        self.last: BaseException | None = None
        manager._generation_loop_body = self._guarded
        self._processor.update_batch = self._update

    def _guarded(self, *args: Any, **kwargs: Any) -> bool:
        self._scheduler.in_step = []
        self._seats.between_steps()
        try:
            more = self._body(*args, **kwargs)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            if self._contained(error):
                return True
            if isinstance(error, Exception):
                raise
            raise RuntimeError(f"{type(error).__name__}: {first_line(error)}") from error
        if self._scheduler.in_step:
            self._in_a_row = 0
            self._scheduler.passed()
        return more

    def _contained(self, error: BaseException) -> bool:
        """Undo the step that raised; False where the engine must end."""
        before = self._scheduler.in_step
        ids = [one.state.request_id for one in before]
        if not before or _device_lost(error) or (self._probe is not None and self._probe[0] in ids):
            return False
        self._scheduler.take_back(before)
        self._seats.take_back({_seat(one.state): _answer(one.state) for one in before})
        if len(before) > 1:
            logger.warning("a step of %d sequences failed and is tried again one by one: %s", len(before), _said(error))
            self._scheduler.suspects = dict.fromkeys(ids)
            return True
        self._scheduler.passed()
        self._fail(before[0].state, error)
        self._in_a_row += 1
        if self._in_a_row % MOST_IN_A_ROW == 0:
            self._try_a_sound_one()
        return True

    def _fail(self, state: RequestState, error: BaseException) -> None:
        logger.error("a sequence of the text engine failed alone", exc_info=error)
        self.own.add(state.request_id)
        self.last = error
        self._processor._handle_request_error(error, state)
        self._scheduler.forget(state.request_id)

    def _try_a_sound_one(self) -> None:
        params = SamplingParams(max_tokens=1, temperature=0.0)
        number = self._seats.sit(Seat(Setting(), params, 0, [0]))
        state = RequestState(
            request_id=salted_id(_PROBE),
            initial_tokens=[0],
            max_new_tokens=1,
            logit_processor_kwargs={"seat": number, "flow": _PROBE},
        )
        self._probe = (state.request_id, number)
        self._scheduler.add_waiting_request(state)
        self._scheduler.suspects = {state.request_id: None, **self._scheduler.suspects}

    def _update(self) -> None:
        """As transformers' `update_batch`, without forks, and each sequence on its own."""
        requests, tokens, logprobs = self._processor.inputs_and_outputs.prepare_batch_update()
        drawn = zip(tokens, logprobs or [None] * len(tokens), strict=False)
        before, self._scheduler.in_step = self._scheduler.in_step, []  # from here on nothing is taken back
        outputs = []
        for future in requests:
            token, logprob = next(drawn) if future.has_new_token else (None, None)
            try:
                output = self._updated(future, token, logprob)
            except Exception as error:
                self._fail(future.state, error)
            else:
                outputs += [output] if output is not None else []
        self._scheduler.in_step = before
        with suppress(RuntimeError):  # the callers' loop is closed, and nobody waits
            self._processor.output_router.deliver_batch(outputs)

    def _updated(self, future: FutureRequestState, token: int | None, logprob: float | None) -> Any:
        """What a sequence's callers are told after a step; None: nothing yet."""
        state, finished = future.state, False
        if state.status in (RequestStatus.FINISHED, RequestStatus.PENDING):
            raise RuntimeError(f"a sequence that is {state.status.name} was in a step")
        if token is not None:
            state.status = RequestStatus.DECODING
            finished = state.update_and_check_completion(token, logprob)
        self._processor.cache.mark_complete_blocks(state, future.complete_blocks)
        if finished:
            self._scheduler.finish_request(state.request_id)
            self._scheduler.block_new_requests = False
        if self._probe is not None and state.request_id == self._probe[0]:
            self._seats.leave(self._probe[1])
            self._probe = None
            return None
        return state.to_generation_output() if token is not None and (state.streaming or finished) else None


def _device_lost(error: BaseException) -> bool:
    """Whether every later call of the device fails too, as CUDA says it."""
    lost = getattr(torch, "AcceleratorError", ())
    return isinstance(error, lost) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def _seat(state: RequestState) -> int:
    return int(state.logit_processor_kwargs["seat"])


def _answer(state: RequestState) -> list[int]:
    """Tokens that a sequence had drawn before its step."""
    tokens: list[int] = state.to_generation_output().generated_tokens
    return tokens


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
