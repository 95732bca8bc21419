"""What of transformers' scheduler is ours: fair steps, safe cancelling, steps that can be taken back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

from deployments.engines.text.admission import Work, step_rows
from deployments.engines.text.guests import Guests
from deployments.engines.text.prefix_sharing import make_room
from deployments.engines.text.token_shares import TokenShares

PAGE = 128
"""Tokens of a cache page: small, since a page is reserved whole."""
ECHO_TOKENS = 256
"""Tokens of a step in which a prompt's own log-probabilities are made: each has a row of logits."""
FAIR = "fair"
"""Our scheduler's name among transformers'."""


@dataclass(frozen=True)
class Before:
    """A sequence as it was before a step."""

    state: RequestState
    status: RequestStatus
    tokens: list[int]
    left: list[int]
    position: int

    @classmethod
    def of(cls, state: RequestState) -> Before:
        """A sequence as it is."""
        return cls(state, state.status, state.tokens_to_process, state.remaining_prefill_tokens, state.position_offset)


class FairScheduler(FIFOScheduler):
    """Rows of a step by tokens served to each flow; a cancelled request is finished, and somebody is told.

    More sequences may be resident than a step has rows: those left out keep their pages and come in a later step.

    Attributes:
        in_step: the sequences that the step under way is chosen from, as they were before it.
        suspects: ids of sequences that have a step each, since one of them may be what made a step fail.
    """

    on_read: Callable[[str, int, int], None] | None = None
    on_step: Callable[[list[FutureRequestState]], None] | None = None
    """Told of the sequences of each step, in their order."""
    on_cancelled: Callable[[str], None] | None = None
    shares: TokenShares
    guests: Guests
    beat: float | None = None
    """Monotonic time at which the engine's loop came by last; idle it does so ten times a second."""

    def reset(self) -> None:
        """Forget everything, as the base class does."""
        super().reset()
        self._step = 0
        self._last: dict[str, int] = {}
        self.in_step: list[Before] = []
        self.suspects: dict[str, None] = {}

    def schedule_batch(
        self, token_budget: int, cache_budget: int
    ) -> tuple[list[FutureRequestState] | None, bool, int, int]:
        """The next step, as the base class has it."""
        self._step += 1
        if any(map(_echoes, [*self.active_requests.values(), *self.waiting_requests.values()])):
            token_budget = min(token_budget, ECHO_TOKENS)
        candidates = self._in_turn(token_budget)
        self.in_step = [Before.of(state) for state in candidates]
        asked = [(_flow(s), s.status == RequestStatus.DECODING, _tokens(s)) for s in candidates]
        token_budget = self.guests.budget(asked, self.shares, token_budget)
        make_room(self.cache, sum(pages_of(_tokens(state)) + 1 for state in candidates))
        removed: set[str] = set()
        reading = {state.request_id for state in candidates if state.status != RequestStatus.DECODING}
        scheduled, failed, fast, queries, read = self._process_candidates(
            candidates, token_budget, cache_budget, removed
        )
        self._cleanup_waiting_queue(removed)
        for future in scheduled:
            request_id = future.state.request_id
            self._last[request_id] = self._step
            if self.on_read and request_id in reading:
                self.on_read(request_id, len(future.state.remaining_prefill_tokens), future.query_length)
            self.shares.charge(_flow(future.state), future.query_length)
        if not scheduled and failed:
            return None, fast, 0, 0
        if self.on_step:
            self.on_step(scheduled)
        return scheduled, fast, queries, read

    def _in_turn(self, token_budget: int) -> list[RequestState]:
        states = [*self.active_requests.values(), *(self.waiting_requests[r] for r in self.waiting_requests_order)]
        present = {state.request_id: state for state in states}
        self.suspects = {name: None for name in self.suspects if name in present}
        states = [present[name] for name in self.suspects][:1] or states
        self._last = {name: self._last.get(name, -1) for name in present}
        work = [
            Work(
                flow=_flow(s),
                tokens=_tokens(s),
                decoding=s.status == RequestStatus.DECODING,
                last=self._last[s.request_id],
                item=s,
            )
            for s in states
        ]
        return step_rows(self.shares, work, rows=self.max_requests_per_batch, tokens=token_budget)

    def clear_cancelled_requests(self) -> list[RequestState]:
        """Drop cancelled requests, as the base class does."""
        self.beat = time.monotonic()
        with self._cancellation_lock:
            asked = set(self._requests_to_cancel)
        states: list[RequestState] = super().clear_cancelled_requests()
        for state in states:
            state.status = RequestStatus.FINISHED
        if self.on_cancelled:
            for request_id in asked:
                self.on_cancelled(request_id)
        return states

    def passed(self) -> None:
        """What the step was chosen from is suspected no more."""
        for before in self.in_step:
            self.suspects.pop(before.state.request_id, None)

    def take_back(self, step: Iterable[Before]) -> None:
        """Undo a step before any of its sequences was given a token: those that it began with are to begin anew."""
        for before in step:
            state = before.state
            if before.status == RequestStatus.PENDING:
                self.forget(state.request_id)
                self.waiting_requests[state.request_id] = state
            state._status, state.position_offset = before.status, before.position  # the setter would stamp times
            state.tokens_to_process, state.remaining_prefill_tokens = before.tokens, before.left
        kept = [name for name in self.waiting_requests_order if name in self.waiting_requests]
        self.waiting_requests_order = deque(dict.fromkeys([*kept, *self.waiting_requests]))

    def forget(self, request_id: str) -> None:
        """Let go of a sequence, wherever it is, and of its pages."""
        self.waiting_requests.pop(request_id, None)
        self.waiting_requests_order = deque(name for name in self.waiting_requests_order if name != request_id)
        self.suspects.pop(request_id, None)
        self.finish_request(request_id)


SCHEDULER_MAPPING[FAIR] = FairScheduler


def _flow(state: RequestState) -> str:
    return str(state.logit_processor_kwargs["flow"])


def _tokens(state: RequestState) -> int:
    """Tokens that a sequence would have processed next."""
    return 1 if state.status == RequestStatus.DECODING else len(state.remaining_prefill_tokens)


def _echoes(state: RequestState) -> bool:
    """Whether a sequence's prompt is being read for its own log-probabilities."""
    return bool(state.logit_processor_kwargs.get("reads")) and state.status != RequestStatus.DECODING


def pages_of(tokens: int) -> int:
    """Pages that a sequence of so many tokens takes."""
    return -(-tokens // PAGE)
