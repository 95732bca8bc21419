"""What of transformers' continuous batching is ours: cancelling that cannot kill its loop, and planned memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler
from transformers.generation.logits_process import LogitsProcessorList

from deployments.engines.language_models import LanguageModel

PAGE = 128
"""Tokens of a cache page: small, since a page is reserved whole."""
CACHE_BYTES = {"cpu": 3 * 2**29, "cuda": 8 * 2**30}
STEP_TOKENS = {"cpu": 256, "cuda": 2048}
"""Tokens of a step: what a long prompt may hold up the others by."""
_NAME = "fifo_safe_cancel"


class SafeCancelScheduler(FIFOScheduler):
    """FIFO, for requests that were already admitted fairly; a cancelled request is finished, and somebody is told."""

    on_cancelled: Callable[[str], None] | None = None

    def clear_cancelled_requests(self) -> list[RequestState]:
        """Drop cancelled requests, as the base class does."""
        with self._cancellation_lock:
            asked = set(self._requests_to_cancel)
        states: list[RequestState] = super().clear_cancelled_requests()
        for state in states:
            state.status = RequestStatus.FINISHED
        if self.on_cancelled:
            for request_id in asked:
                self.on_cancelled(request_id)
        return states


SCHEDULER_MAPPING[_NAME] = SafeCancelScheduler


def cache_pages(model: LanguageModel, context: int, sequences: int) -> int:
    """Pages of the key-value cache: for every sequence at full context, or as many as the memory meant for it holds."""
    config = model.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    page_bytes = 2 * config.num_hidden_layers * heads * width * PAGE * model.model.dtype.itemsize
    affordable = CACHE_BYTES.get(model.model.device.type, CACHE_BYTES["cpu"]) // page_bytes
    return int(min(sequences * pages_of(context), max(affordable, pages_of(context))))


def pages_of(tokens: int) -> int:
    """Pages that a sequence of so many tokens takes."""
    return -(-tokens // PAGE)


def start_manager(
    model: LanguageModel,
    processor: ContinuousBatchingLogitsProcessor,
    *,
    sequences: int,
    pages: int,
    on_cancelled: Callable[[str], None],
) -> ContinuousBatchingManager:
    """Start the engine's loop in its own thread: synchronous batches, no graphs, greedy over the processor's scores.

    Args:
        sequences: most sequences of a step.
        pages: of the key-value cache.
        on_cancelled: called in the loop's thread with the id of a cancelled request, once it is out of the engine.
    """
    device = model.model.device.type
    # A page over, so that the scheduler's own safety margin never holds back what was admitted here.
    config = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=pages + 1,
        max_batch_tokens=max(STEP_TOKENS.get(device, STEP_TOKENS["cpu"]), sequences),
        max_requests_per_batch=sequences,
        max_blocks_per_request=0,
        # Prefix pages are shared by an unsalted hash, so timing would tell tenants of each other's prompts.
        allow_block_sharing=False,
        use_async_batching=False,
        use_cuda_graph=False,
        scheduler_type=_NAME,
        safety_margin=0.0,
        auto_switch_to_flash=False,
        seed=0,
    )
    generation = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=sorted(model.end_tokens) or -1
    )
    engine: Any = model.model
    manager: Any = engine.init_continuous_batching(generation, continuous_batching_config=config)
    processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([processor]))
    processors.tensors_required = 1  # the list counts only classes that it converted itself
    manager.logit_processor = processors
    with torch.no_grad():
        manager.warmup()  # makes the batch processor, so that its scheduler can be reached before the thread runs
    manager.batch_processor.scheduler.on_cancelled = on_cancelled
    manager.start()
    return manager  # type: ignore[no-any-return]
