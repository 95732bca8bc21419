"""What the start-up request refuses, with answers made up in place of an engine's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deployments.engines.errors import LoadError
from deployments.engines.text.loading.language_models import LanguageModel
from deployments.engines.text.smoke import LENGTHS, TOKENS, check_serves, first_wrong, smoke_prompts, tie

VOCABULARY, END, SPECIAL = 320, 7, 11


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3, tie_word_embeddings=False, max_position_embeddings=256,
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval().requires_grad_(False)
    # A model's own defaults, which no request of the engine has.
    llama.generation_config.repetition_penalty, llama.generation_config.eos_token_id = 5.0, 3
    tokenizer: Any = SimpleNamespace(all_special_ids=[SPECIAL], added_tokens_decoder={SPECIAL: "<s>"})
    return LanguageModel(llama, tokenizer, llama.lm_head, 256, frozenset({END}), "tiny", id="tiny-llama")


@torch.no_grad()
def greedy(model: LanguageModel, prompt: list[int], most: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + most and (tokens == prompt or tokens[-1] != END):
        tokens.append(int(model.model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def said(model: LanguageModel, answer: Any, **options: Any) -> str:
    with pytest.raises(LoadError) as refused:
        check_serves(model, answer, **options)
    line = str(refused.value)
    assert line.startswith("tiny-llama: LlamaForCausalLM cannot be served: ") and "\n" not in line
    return line


async def test_greedy_answers_pass_with_or_without_a_running_loop_and_leave_the_defaults(model: LanguageModel) -> None:
    async def answer(prompt: list[int], most: int) -> list[int]:
        return greedy(model, prompt, most)

    check_serves(model, answer)
    await asyncio.to_thread(check_serves, model, answer)
    defaults: Any = model.model.generation_config
    assert defaults.repetition_penalty == 5.0 and defaults.eos_token_id == 3


def test_another_token_is_refused_and_the_line_says_where(model: LanguageModel) -> None:
    async def answer(prompt: list[int], most: int) -> list[int]:
        tokens = greedy(model, prompt, most)
        return tokens if len(prompt) < 100 else [*tokens[:2], (tokens[2] + 1) % VOCABULARY, *tokens[3:]]

    assert f"to a prompt of {LENGTHS[1]} tokens differs from generate's at token 3" in said(model, answer)


def test_an_answer_that_stops_early_or_late_is_refused(model: LanguageModel) -> None:
    prompt = smoke_prompts(model, 256)[0]
    tokens = greedy(model, prompt, TOKENS)
    assert first_wrong(model, prompt, tokens) is None
    assert first_wrong(model, prompt, tokens[:3]) == 3
    assert first_wrong(model, prompt, []) == 0
    ending = LanguageModel(**{**model.__dict__, "end_tokens": frozenset({tokens[2]})})
    assert first_wrong(ending, prompt, tokens[: tokens.index(tokens[2]) + 1]) is None
    assert first_wrong(ending, prompt, tokens) == tokens.index(tokens[2]) + 1


def test_an_engine_that_fails_or_dies_is_refused_with_its_own_error(model: LanguageModel) -> None:
    async def fails(prompt: list[int], most: int) -> list[int]:
        raise RuntimeError("stopped\nand more")

    async def hangs(prompt: list[int], most: int) -> list[int]:
        await asyncio.sleep(60)
        return []

    died = KeyError("no cache")
    assert "first request (RuntimeError: stopped)" in said(model, fails)
    assert "first request (KeyError: 'no cache')" in said(model, fails, fault=lambda: died)
    assert "first request (KeyError: 'no cache')" in said(model, hangs, fault=lambda: died)
    assert "did not answer within" in said(model, hangs, deadline=0.3)


def test_after_a_tie_the_engines_own_way_is_followed() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval().requires_grad_(False)
    tokenizer: Any = SimpleNamespace(all_special_ids=[], added_tokens_decoder={})
    twins = LanguageModel(llama, tokenizer, llama.lm_head, 256, frozenset(), "tiny")
    prompt = smoke_prompts(twins, 256)[0]
    first = greedy(twins, prompt, 1)[0]
    twin = (first + 1) % VOCABULARY
    llama.lm_head.weight[twin] = llama.lm_head.weight[first]
    other = [twin, *greedy(twins, [*prompt, twin], TOKENS - 1)]
    assert first_wrong(twins, prompt, other) is None
    assert first_wrong(twins, prompt, [twin, *[(t + 2) % VOCABULARY for t in other[1:]]]) == 1


def test_half_precision_ties_are_wider() -> None:
    row = torch.tensor([20.0, -25.0])
    assert tie(row, torch.float32) == 1e-4
    assert tie(row, torch.float16) == pytest.approx(4 * 2**-10 * 25)
    assert tie(row, torch.bfloat16) == pytest.approx(4 * 2**-7 * 25)


def test_prompts_are_ordinary_tokens_and_fit_a_small_context(model: LanguageModel) -> None:
    prompts = smoke_prompts(model, 256)
    assert prompts == smoke_prompts(model, 256) and tuple(map(len, prompts)) == LENGTHS
    assert not {SPECIAL, END} & {token for prompt in prompts for token in prompt}
    assert [len(prompt) + TOKENS for prompt in smoke_prompts(model, 16)] == [13, 16]
