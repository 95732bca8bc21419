"""What of transformers' continuous batching is ours: fair steps, safe cancelling, planned memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler
from transformers.generation.logits_process import LogitsProcessorList

from deployments.engines.errors import LoadError, first_line
from deployments.engines.text.admission import Work, step_rows
from deployments.engines.text.cache_calls import take_older_calls
from deployments.engines.text.loading.attention import ready
from deployments.engines.text.loading.language_models import LanguageModel
from deployments.engines.text.prefix_sharing import make_room, salt_pages
from deployments.engines.text.token_shares import TokenShares

PAGE = 128
"""Tokens of a cache page: small, since a page is reserved whole."""
CPU_CACHE_GIB = 1.5
"""On a card the cache takes what the weights leave free."""
ECHO_TOKENS = 256
"""Tokens of a step in which a prompt's own log-probabilities are made: each has a row of logits."""
STEP_TOKENS = {"cpu": 128, "cuda": 2048}
"""Tokens of a step: what prompts hold up the others by. A CPU reads a tenth faster by 256, in steps of a second."""
_NAME = "fair"


class FairScheduler(FIFOScheduler):
    """Rows of a step by tokens served to each flow; a cancelled request is finished, and somebody is told.

    More sequences may be resident than a step has rows: those left out keep their pages and come in a later step.
    """

    on_read: Callable[[str, int, int], None] | None = None
    on_step: Callable[[list[FutureRequestState]], None] | None = None
    on_cancelled: Callable[[str], None] | None = None
    shares: TokenShares
    beat: float | None = None
    """Monotonic time at which the engine's loop came by last; idle it does so ten times a second."""

    def reset(self) -> None:
        """Forget everything, as the base class does."""
        super().reset()
        self._step = 0
        self._last: dict[str, int] = {}

    def schedule_batch(
        self, token_budget: int, cache_budget: int
    ) -> tuple[list[FutureRequestState] | None, bool, int, int]:
        """The next step, as the base class has it."""
        self._step += 1
        if any(map(_echoes, [*self.active_requests.values(), *self.waiting_requests.values()])):
            token_budget = min(token_budget, ECHO_TOKENS)
        candidates = self._in_turn(token_budget)
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
            self.shares.charge(future.state.logit_processor_kwargs["flow"], future.query_length)
        if not scheduled and failed:
            return None, fast, 0, 0
        if self.on_step:
            self.on_step(scheduled)
        return scheduled, fast, queries, read

    def _in_turn(self, token_budget: int) -> list[RequestState]:
        states = [*self.active_requests.values(), *(self.waiting_requests[r] for r in self.waiting_requests_order)]
        self._last = {s.request_id: self._last.get(s.request_id, -1) for s in states}
        work = [
            Work(
                flow=s.logit_processor_kwargs["flow"],
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


SCHEDULER_MAPPING[_NAME] = FairScheduler


def _tokens(state: RequestState) -> int:
    """Tokens that a sequence would have processed next."""
    return 1 if state.status == RequestStatus.DECODING else len(state.remaining_prefill_tokens)


def _echoes(state: RequestState) -> bool:
    """Whether a sequence's prompt is being read for its own log-probabilities."""
    return bool(state.logit_processor_kwargs["reads"]) and state.status != RequestStatus.DECODING


def cache_pages(model: LanguageModel, context: int, sequences: int, gib: float | None) -> int:
    """Pages of the key-value cache: for every sequence at full context, or as many as the memory meant for it holds.

    Args:
        gib: memory meant for it; None: as much as there is.

    Raises:
        LoadError: the model's layers do not say, or not alike, how large their keys are.
    """
    config = model.model.config.get_text_config()
    try:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    except (AttributeError, RuntimeError) as error:
        raise _unfit(model, error) from error
    page_bytes = 2 * config.num_hidden_layers * heads * width * PAGE * model.model.dtype.itemsize
    wanted = sequences * pages_of(context)
    return wanted if gib is None else int(min(wanted, max(gib * 2**30 // page_bytes, pages_of(context))))


def pages_of(tokens: int) -> int:
    """Pages that a sequence of so many tokens takes."""
    return -(-tokens // PAGE)


def start_manager(
    model: LanguageModel,
    processor: ContinuousBatchingLogitsProcessor,
    *,
    rows: int,
    pages: int,
    context: int,
    room: float | None = None,
    shares: TokenShares,
    on_read: Callable[[str, int, int], None],
    on_step: Callable[[list[FutureRequestState]], None],
    on_cancelled: Callable[[str], None],
) -> tuple[ContinuousBatchingManager, int]:
    """Start the engine's loop in its own thread: synchronous batches, no graphs, greedy over the processor's scores.

    Args:
        rows: most sequences of a step.
        pages: of the key-value cache.
        context: most tokens of a sequence, which the cache must hold.
        room: part of the device's free memory that cache and steps may take; the pages are then as many as fit into it,
            at most `pages`. None: `pages`, or the model is refused.
        shares: what each flow has been served; the loop charges it.
        on_read: called in the loop's thread with the id of a request, how many tokens of its prompt are left, and how
            many are in a step, once a part of it is in one, which nothing takes back.
        on_step: called in the loop's thread with the sequences of each step, in their order.
        on_cancelled: called in the loop's thread with the id of a cancelled request, once it is out of the engine.

    Returns:
        The manager, and the pages that its cache has.

    Raises:
        LoadError: transformers' continuous batching has no cache for layers like the model's, or memory has no room for
            one sequence.
    """
    device = model.model.device.type
    if device == "cpu":
        # Transformers repeats keys and values for every query head, since it takes a mask to rule torch's own grouping
        # out. Not on a CPU: the same bits, and at 16 rows a fifth of the time.
        os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
    generation = GenerationConfig(do_sample=False, eos_token_id=sorted(model.end_tokens) or -1)
    processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([processor]))
    processors.tensors_required = 1  # the list counts only classes that it converted itself
    ready(model.model)
    manager, pages = _with_cache(model, generation, processors, _batching(device, rows, pages, room), context)
    salt_pages(manager.batch_processor.cache)
    take_older_calls(manager.batch_processor.cache, model.model)
    scheduler = manager.batch_processor.scheduler
    scheduler.on_read, scheduler.on_step, scheduler.on_cancelled = on_read, on_step, on_cancelled
    scheduler.shares = shares
    manager.start()
    return manager, pages


def _with_cache(
    model: LanguageModel, generation: Any, processors: Any, config: ContinuousBatchingConfig, context: int
) -> tuple[Any, int]:
    """A manager whose cache has the pages that the configuration asks for, or as many as memory holds."""
    engine: Any = model.model
    asked = config.num_blocks or 0
    while True:
        try:
            manager = engine.init_continuous_batching(generation, continuous_batching_config=config)
            manager.logit_processor = processors
            with torch.no_grad():
                manager.warmup()  # makes the batch processor: its scheduler is to be reached before the thread runs
        except (AttributeError, KeyError, TypeError, ValueError, MemoryError, torch.OutOfMemoryError) as error:
            full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "Invalid values" in str(error)
            if not full:
                raise _unfit(model, error) from error
            if config.max_memory_percent is None or config.num_blocks is None:
                raise _no_room(model, context) from error
            config = replace(config, num_blocks=None)  # the library then takes as many as fit
            continue
        pages = min(asked, manager.batch_processor.cache.num_blocks) - 1
        if pages < pages_of(context):
            raise _no_room(model, context, pages * PAGE)
        return manager, pages


def _no_room(model: LanguageModel, context: int, tokens: int | None = None) -> LoadError:
    least = "" if tokens is None or tokens < PAGE else f" to at most {tokens}"
    return LoadError(
        f"{model.id}: memory has no room for keys and values of one sequence of {context} tokens beside the weights;"
        f" set max_context{least}, dtype to bfloat16, or another cache_gib, or give it more of a card in num_gpus"
    )


def _unfit(model: LanguageModel, error: Exception) -> LoadError:
    return model.refused(f"transformers' continuous batching does not take its layers ({first_line(error)})")


def _batching(device: str, rows: int, pages: int, room: float | None) -> ContinuousBatchingConfig:
    # A page over, so that the scheduler's own safety margin never holds back what was admitted here.
    return ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=pages + 1,
        max_memory_percent=room,
        max_batch_tokens=max(STEP_TOKENS.get(device, STEP_TOKENS["cpu"]), 2 * rows),
        max_requests_per_batch=rows,
        max_blocks_per_request=0,
        allow_block_sharing=True,
        use_async_batching=False,
        use_cuda_graph=False,
        scheduler_type=_NAME,
        safety_margin=0.0,
        auto_switch_to_flash=False,
        seed=0,
    )
