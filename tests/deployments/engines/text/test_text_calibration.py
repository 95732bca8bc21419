"""Calibration of a text model on answers that the serving engine gives, on a Llama of random weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from deployments.config import ModelSpec, Task, resolve_path
from deployments.engines.text.calibration import (
    BUNDLED,
    Answer,
    answers,
    near_levels,
    split_paragraphs,
)
from deployments.engines.text.generator import Generator, SamplingParams
from deployments.engines.text.loading.language_models import LanguageModel
from policies.calibration.answering import LEVELS, MOST_PROMPTS
from policies.calibration.calibration import Calibration
from policies.calibration.candidates import Candidates
from policies.errors import Unavailable
from policies.field.variance import scale_of
from policies.head.slots import Setting
from policies.terms import Modulation, Share
from tests.deployments.text_support import SPEC as SERVED
from tests.deployments.tokenizer_support import stand_in

SECRET = b"a secret for the tests"
VOCABULARY, END = 600, 7
SPEC = ModelSpec(id="tiny", task=Task.TEXT, source="nowhere", max_batch_size=16)


def tiny() -> Generator:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval().requires_grad_(False)
    return Generator(SPEC, LanguageModel(llama, stand_in(VOCABULARY), llama.lm_head, 256, frozenset({END}), "tiny"))


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    made = tiny()
    yield made
    made.close()


def prompts(count: int, seed: int) -> list[list[int]]:
    chance = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 12, (count,), generator=chance).sort().values.tolist()
    return [torch.randint(8, VOCABULARY, (n,), generator=chance).tolist() for n in lengths]


def text_file(path: Path, count: int) -> Path:
    path.write_text("\n\n".join("".join(chr(65 + t % 57) for t in prompt * 2) for prompt in prompts(count, 3)))
    return path


@pytest.fixture(scope="module")
def calibration(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    path = text_file(tmp_path_factory.mktemp("t") / "t.txt", 40)
    solved = generator.fit(generator.calibration_sample(path), SECRET)
    generator.install(solved, SECRET)
    return solved


def agreed(generator: Generator, answer: Answer) -> Tensor:
    """Whether each token of an answer is the clean one of its step."""
    return generator.clean_logits(answer.features).argmax(dim=1) == torch.tensor(answer.tokens)


def test_a_long_text_is_thinned_and_the_rest_left_for_judging(tmp_path: Path) -> None:
    chosen, others = split_paragraphs(text_file(tmp_path / "t.txt", MOST_PROMPTS + 30))
    assert (len(chosen), len(others)) == (MOST_PROMPTS, 30)
    assert len({*chosen, *others}) == MOST_PROMPTS + 30


def test_the_text_that_is_shipped_and_served_with_calibrates_in_full_and_leaves_some_for_judging() -> None:
    assert resolve_path(str(SERVED.calibration)) == BUNDLED
    chosen, others = split_paragraphs(BUNDLED)
    assert len(chosen) == MOST_PROMPTS and len(others) >= MOST_PROMPTS


def test_an_answer_has_a_feature_for_each_token_and_at_level_1_each_is_the_clean_one(generator: Generator) -> None:
    for answer in answers(generator, [(prompt, Setting()) for prompt in prompts(20, 6)], steps=9):
        assert answer.features.shape == (len(answer.tokens), 64) and bool(agreed(generator, answer).all())
        assert len(answer.tokens) == 9 or answer.tokens[-1] == END


def test_answers_given_together_are_those_given_alone(generator: Generator, calibration: Calibration) -> None:
    asked = [
        (prompt, Setting(position=calibration.position(level))) for prompt in prompts(4, 5) for level in (0.9, 0.6)
    ]
    together = answers(generator, asked, steps=6)
    assert len({tuple(answer.tokens) for answer in together}) > 4
    for own, answer in zip(asked, together, strict=True):
        (alone,) = answers(generator, [own], steps=6)
        assert alone.tokens == answer.tokens
        torch.testing.assert_close(alone.features, answer.features, rtol=1e-3, atol=1e-3)


def test_what_calibrates_counts_as_sold_to_nobody(generator: Generator, calibration: Calibration) -> None:
    before = generator.audit()
    answers(generator, [(prompt, Setting(position=20_000)) for prompt in prompts(3, 8)], steps=4)
    assert generator.audit() == before


def test_steps_know_where_their_answers_were_given(generator: Generator, calibration: Calibration) -> None:
    done: list[float] = []
    sample = near_levels(generator, prompts(12, 7), done.append)
    assert sample.at is not None and isinstance(sample.logits, Candidates)
    assert done[-1] == 1.0 and done == sorted(done)
    positions = [calibration.position(level) for level in LEVELS]
    assert sorted(set(sample.at.tolist())) == sorted(positions)
    shares = []
    for position in positions:
        mine = sample.at == position
        phi, matrix = generator.head.phi(sample.features[mine]), generator.head.matrix_at(position)
        shares.append(float(sample.logits[mine].survives(phi, matrix, scale_of(position)).float().mean()))
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("level", [0.9, 0.7, 0.5])
def test_a_level_is_delivered_on_answers_to_prompts_that_did_not_calibrate(
    generator: Generator, calibration: Calibration, level: float
) -> None:
    given = answers(generator, [(prompt, Setting(level)) for prompt in prompts(60, 11)], steps=24)
    same = [agreed(generator, answer).float() for answer in given]
    steps = sum(map(len, same))
    error = float(torch.stack([(own - level).sum() for own in same]).square().sum().sqrt()) / steps
    assert abs(float(torch.cat(same).mean()) - level) < 0.01 + 3.0 * 1.6 * error


async def test_before_its_calibration_a_model_serves_level_1_and_nothing_else(calibration: Calibration) -> None:
    fresh = tiny()
    prompt, share = prompts(1, 4)[0], Share(flow="tenant")

    async def tokens(modulation: Modulation) -> int:
        steps = fresh.generate(prompt, SamplingParams(max_tokens=5, temperature=0.0), modulation, share)
        return sum([delta.tokens async for delta in steps])

    try:
        fresh.healthy()
        assert await tokens(Modulation()) > 0 and not fresh.calibrated and fresh.floor == 1.0
        for terms in (Modulation(utility=0.9), Modulation(focus={"a": 0.5})):
            with pytest.raises(Unavailable) as refused:
                await tokens(terms)
            assert refused.value.code == "levels_pending"
        assert fresh.audit().keys() == {1.0}
        fresh.install(calibration, SECRET)
        assert fresh.calibrated and fresh.floor == calibration.floor and await tokens(Modulation(utility=0.9)) > 0
    finally:
        fresh.close()


async def test_a_first_install_leaves_the_draws_of_answers_under_way_alone(calibration: Calibration) -> None:
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=5, presence_penalty=1.5)
    prompt, share = prompts(1, 9)[0], Share(flow="tenant")

    async def answer(install: bool) -> list[int]:
        engine, tokens = tiny(), 0
        engine.engine.draw_secret = b"the same for both"
        seen: list[int] = []
        try:
            async for piece in engine.engine.run(prompt, params, Setting(), share):
                seen += piece.tokens
                if install and len(seen) >= 5 and not engine.calibrated:
                    await asyncio.to_thread(engine.install, calibration, SECRET)
                    tokens = len(seen)
        finally:
            engine.close()
        assert not install or 5 <= tokens < len(seen)
        return seen

    assert await answer(True) == await answer(False)


async def test_without_a_head_nothing_below_level_1_is_seated(calibration: Calibration) -> None:
    fresh = tiny()
    try:
        for setting in (Setting(0.9), Setting(position=20_000), Setting(1.0, {9: 0.5})):
            with pytest.raises(Unavailable):
                await fresh.engine.greedy(prompts(1, 2)[0], 3, setting)
    finally:
        fresh.close()
