"""A first request through the real engine: what would die there, or answer otherwise than `generate`, is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from deployments.engines.errors import first_line
from deployments.engines.text.loading.attention import alone
from deployments.engines.text.loading.language_models import LanguageModel
from deployments.engines.text.scheduler import PAGE

TOKENS = 8
"""Of each answer."""
LENGTHS = (5, PAGE + 12)
"""Tokens of the prompts: one that fits a page of the cache, one that takes two, and two steps on a CPU."""
TIE = 1e-4
"""Logits nearer than this may be told apart either way: two orders of summing round differently."""
ROUNDINGS = 4
"""The same in half precision, in steps of the type at the largest logit."""
DEADLINE = 300.0
"""Seconds: far more than a large model on a slow machine takes, for an engine that neither answers nor dies."""
_LOOK = 0.2

Answer = Callable[[list[int], int], Awaitable[list[int]]]


def check_serves(
    model: LanguageModel,
    answer: Answer,
    *,
    context: int | None = None,
    fault: Callable[[], BaseException | None] = lambda: None,
    deadline: float = DEADLINE,
) -> None:
    """Compare greedy answers of the engine, token for token, with those of the model's own `generate`.

    May be called with or without a running event loop; the engine must serve nobody else meanwhile.

    Args:
        answer: runs the engine: prompt and most tokens to the answer's tokens, greedy, as the model alone would.
        context: most tokens of a sequence that the engine takes; the model's own unless given.
        fault: what the engine died of, if it did.
        deadline: seconds after which an engine that says nothing is given up.

    Raises:
        LoadError: the engine dies, hangs, or answers otherwise; one line naming the model, its class and what is wrong.
    """
    prompts = smoke_prompts(model, context or model.context)
    with ThreadPoolExecutor(1, "smoke") as thread:
        try:
            answers = thread.submit(asyncio.run, _ask(answer, prompts, fault, deadline)).result()
        except TimeoutError as error:
            raise model.refused(f"the engine did not answer within {deadline:.0f} s") from error
        except Exception as error:
            raise model.refused(f"the engine fails at its first request ({_said(_cause(fault) or error)})") from error
    for prompt, tokens in zip(prompts, answers, strict=True):
        try:
            wrong = first_wrong(model, prompt, tokens)
        except Exception as error:
            raise model.refused(f"its own generate fails ({_said(error)})") from error
        if wrong is not None:
            raise model.refused(
                f"the engine's answer to a prompt of {len(prompt)} tokens differs from generate's at token {wrong + 1}"
            )


def smoke_prompts(model: LanguageModel, context: int) -> list[list[int]]:
    """Prompts of ordinary tokens, the same in every process; all fit `context` with their answers."""
    embeddings: Any = model.model.get_input_embeddings()
    special = {*model.tokenizer.all_special_ids, *model.tokenizer.added_tokens_decoder, *model.end_tokens}
    ordinary = [token for token in range(embeddings.weight.shape[0]) if token not in special]
    draw = torch.Generator().manual_seed(0)
    lengths = [min(length, context - TOKENS) for length in LENGTHS]
    return [[ordinary[i] for i in torch.randint(len(ordinary), (n,), generator=draw).tolist()] for n in lengths]


def first_wrong(model: LanguageModel, prompt: list[int], answer: list[int], most: int = TOKENS) -> int | None:
    """Where a greedy answer of at most `most` tokens leaves what `generate` writes; None where it does not.

    After a tie the answer's own token is followed.
    """
    at = 0
    while at < len(answer):
        tokens, logits = _generate(model, prompt + answer[:at], len(answer) - at)
        pairs = enumerate(zip(answer[at:], tokens, strict=True))
        differs = next((i for i, (mine, its) in pairs if mine != its), None)
        if differs is None:
            break
        at += differs
        row = logits[differs]
        if not row.max() - row[answer[at]] <= tie(row, model.model.dtype):
            return at
        at += 1
    ends = [i + 1 for i, token in enumerate(answer) if token in model.end_tokens]
    wanted = min([most, *ends])
    return None if len(answer) == wanted else min(len(answer), wanted)


def tie(row: Tensor, dtype: torch.dtype) -> float:
    """How near two logits of a row [V] count as one, in a model of this dtype."""
    rounding = 0.0 if dtype == torch.float32 else ROUNDINGS * torch.finfo(dtype).eps * float(row.abs().max())
    return max(TIE, rounding)


@torch.inference_mode()
def _generate(model: LanguageModel, prompt: list[int], most: int) -> tuple[list[int], list[Tensor]]:
    """Exactly `most` greedy tokens, and the logits [V] float32 of each."""
    language_model: Any = model.model
    ids = torch.tensor([prompt], device=language_model.device)
    config: Any = GenerationConfig(
        do_sample=False, max_new_tokens=most, return_dict_in_generate=True, output_logits=True
    )
    # What a call leaves open comes from the model's own defaults, penalties for instance, which a request here has not.
    defaults, language_model.generation_config = language_model.generation_config, GenerationConfig()
    try:
        with alone(language_model):
            out = language_model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    finally:
        language_model.generation_config = defaults
    return out.sequences[0, len(prompt) :].tolist(), [row[0].float() for row in out.logits]


async def _ask(
    answer: Answer, prompts: list[list[int]], fault: Callable[[], BaseException | None], deadline: float
) -> list[list[int]]:
    """The engine's answers to all prompts, given side by side."""
    tasks = [asyncio.ensure_future(answer(prompt, TOKENS)) for prompt in prompts]
    try:
        async with asyncio.timeout(deadline):
            waiting: set[asyncio.Future[list[int]]] = set(tasks)
            while waiting and fault() is None:
                done, waiting = await asyncio.wait(waiting, timeout=_LOOK)
                for task in done:
                    task.result()
        if waiting:
            raise RuntimeError("the engine has stopped")
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _cause(fault: Callable[[], BaseException | None]) -> BaseException | None:
    """What the engine died of; it fails its requests a moment before it says so."""
    for _ in range(10):
        if (cause := fault()) is not None:
            return cause
        time.sleep(_LOOK / 2)
    return None


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
