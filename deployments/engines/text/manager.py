"""The engine's loop started: transformers' continuous batching with our scheduler, seats and planned memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.generation.logits_process import LogitsProcessorList

from deployments.engines.errors import LoadError, first_line
from deployments.engines.text.cache_calls import take_older_calls
from deployments.engines.text.faults import Faults
from deployments.engines.text.guests import Guests, StepSizes
from deployments.engines.text.loading.attention import ready
from deployments.engines.text.loading.language_models import LanguageModel
from deployments.engines.text.prefix_sharing import salt_pages
from deployments.engines.text.scheduler import FAIR, PAGE, FairScheduler, pages_of
from deployments.engines.text.seats import Seats
from deployments.engines.text.token_shares import TokenShares

CPU_CACHE_GIB = 1.5
"""On a card the cache takes what the weights leave free."""
STEP_TOKENS = {"cpu": StepSizes(128, 64, 32), "cuda": StepSizes(2048, 2048, 512)}
"""What prompts hold up others by. SmolLM2-135M on a core: 67 ms to decode, 151, 208, 334 ms with 32, 64, 128 tokens of
prompts; by 256 it reads a tenth faster than by 128."""


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


def start_manager(
    model: LanguageModel,
    seats: Seats,
    *,
    rows: int,
    pages: int,
    context: int,
    room: float | None = None,
    shares: TokenShares,
    on_read: Callable[[str, int, int], None],
    on_cancelled: Callable[[str], None],
) -> tuple[ContinuousBatchingManager, Faults, int]:
    """Start the engine's loop in its own thread: synchronous batches, no graphs, greedy over the processor's scores.

    Args:
        seats: of the sequences, their logits processor.
        rows: most sequences of a step.
        pages: of the key-value cache.
        context: most tokens of a sequence, which the cache must hold.
        room: part of the device's free memory that cache and steps may take; the pages are then as many as fit into it,
            at most `pages`. None: `pages`, or the model is refused.
        shares: what each flow has been served; the loop charges it.
        on_read: called in the loop's thread with the id of a request, how many tokens of its prompt are left, and how
            many are in a step, once a part of it is in one, which nothing takes back.
        on_cancelled: called in the loop's thread with the id of a cancelled request, once it is out of the engine.

    Returns:
        The manager, what stands between it and faults, and the pages that its cache has.

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
    ready(model.model)
    manager, pages = _with_cache(model, generation, _processors(seats), _batching(device, rows, pages, room), context)
    salt_pages(manager.batch_processor.cache)
    take_older_calls(manager.batch_processor.cache, model.model)
    scheduler: FairScheduler = manager.batch_processor.scheduler
    scheduler.on_read, scheduler.on_cancelled, scheduler.shares = on_read, on_cancelled, shares
    scheduler.on_step = seats.scheduled
    scheduler.guests = Guests(_sizes(device))
    faults = Faults(manager, seats)
    manager.start()
    return manager, faults, pages


def _sizes(device: str) -> StepSizes:
    return STEP_TOKENS.get(device, STEP_TOKENS["cpu"])


def _processors(seats: Seats) -> ContinuousBatchingLogitsProcessorList:
    processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([seats]))
    processors.tensors_required = 1  # the list counts only classes that it converted itself
    return processors


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
        max_batch_tokens=max(_sizes(device).alone, 2 * rows),
        max_requests_per_batch=rows,
        max_blocks_per_request=0,
        allow_block_sharing=True,
        use_async_batching=False,
        use_cuda_graph=False,
        scheduler_type=FAIR,
        safety_margin=0.0,
        auto_switch_to_flash=False,
        seed=0,
    )
