"""Models that scale or cap what their final layer answers: levels, live judging and a live refit are right for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
)

from deployments.config import ModelSpec, Task
from deployments.engines.text.calibration import answers
from deployments.engines.text.generator import Generator, SamplingParams
from deployments.engines.text.loading.language_models import LanguageModel
from policies.head.slots import Setting
from policies.terms import Modulation, Share
from tests.deployments.engines.text.test_text_calibration import END, SECRET, VOCABULARY, prompts, text_file
from tests.deployments.tokenizer_support import stand_in

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "initializer_range": 0.3, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": END,
}  # fmt: skip
MODELS = {
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.0625)),
    "gemma": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, head_dim=16, final_logit_softcapping=5.0)),
}


@pytest.fixture(scope="module", params=MODELS)
def generator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generator]:
    torch.manual_seed(0)
    model = MODELS[request.param]().eval().requires_grad_(False)
    spec = ModelSpec(id=request.param, task=Task.TEXT, source="nowhere", max_batch_size=16)
    made = Generator(
        spec, LanguageModel(model, stand_in(VOCABULARY), model.lm_head, 256, frozenset({END}), request.param)
    )
    made.least_live = 15  # type: ignore[misc]
    path = text_file(tmp_path_factory.mktemp(request.param) / "t.txt", 40)
    made.install(made.fit(made.calibration_sample(path), SECRET), SECRET)
    yield made
    made.close()


def test_the_final_layers_answer_is_not_the_models(generator: Generator) -> None:
    """Else nothing below would show anything."""
    ids = torch.tensor([prompts(1, 1)[0]])
    seen: list[torch.Tensor] = []
    hook = generator.final.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        logits = generator.language_model.model(input_ids=ids).logits
    hook.remove()
    assert not torch.allclose(seen[0], logits, rtol=0.1) and torch.equal(seen[0].argmax(-1), logits.argmax(-1))


@torch.no_grad()
def test_level_1_is_generates_own_answer(generator: Generator) -> None:
    for prompt in prompts(6, 21):
        (answer,) = answers(generator, [(prompt, Setting())], steps=8)
        wanted = generator.language_model.model.generate(  # type: ignore[operator]
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=8
        )
        assert answer.tokens == wanted[0, len(prompt) :].tolist()


async def test_live_rows_are_judged_as_they_were_answered_and_a_refit_stays_where_it_was(generator: Generator) -> None:
    share, params = Share(flow="tenant"), SamplingParams(max_tokens=24, temperature=0.0)

    async def serve(prompt: list[int]) -> None:
        async for _ in generator.generate(prompt, params, Modulation(utility=0.7), share):
            pass

    await asyncio.gather(*(serve(prompt) for prompt in prompts(90, 31)))
    await asyncio.to_thread(generator.judge_live)
    (report,) = [report for report in generator.reports() if report.level == 0.7]
    assert report.delivered.level == pytest.approx(0.7, abs=0.06)
    assert report.expected.level == pytest.approx(report.delivered.level, abs=0.08)
    before = generator.head.calibration
    sample, _ = generator.sample_of(generator.live_rows())
    refit = await asyncio.to_thread(generator.fit, sample, SECRET, stored=before)
    await asyncio.to_thread(generator.install, refit, SECRET)
    given = await asyncio.to_thread(answers, generator, [(prompt, Setting(0.7)) for prompt in prompts(60, 41)])
    same = [(generator.clean_logits(a.features).argmax(1) == torch.tensor(a.tokens)).float() for a in given]
    assert float(torch.cat(same).mean()) == pytest.approx(0.7, abs=0.07)
