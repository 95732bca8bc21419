"""Calibration of a text model on its own modulated answers, on a Llama of random weights."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deployments.config import ModelSpec, Task, resolve_path
from deployments.engines.generator import Generator
from deployments.engines.language_models import LanguageModel
from deployments.engines.text_calibration import (
    BUNDLED,
    LEVELS,
    MAX_PROMPTS,
    answered,
    at_positions,
    calibration_rows,
    split_paragraphs,
)
from deployments.engines.text_stream import Rows, write
from policies.calibration import Calibration
from policies.candidates import Candidates
from policies.ladder import variance
from policies.layer import ModulatedLayer, RowTerms
from tests.deployments.text_support import SPEC as SERVED

SECRET = b"a secret for the tests"
VOCABULARY, END = 600, 7
SPEC = ModelSpec(id="tiny", task=Task.TEXT, source="nowhere")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval().requires_grad_(False)
    tokenizer: Any = SimpleNamespace(
        chat_template=None, encode=lambda text: [8 + ord(c) * 37 % (VOCABULARY - 8) for c in text]
    )
    return LanguageModel(llama, tokenizer, llama.lm_head, 256, frozenset({END}), "tiny")


class Engine(Generator):
    """Calibrated quickly."""

    tolerance = 0.03


def prompts(count: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 12, (count,), generator=generator).sort().values.tolist()
    return [torch.randint(8, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def text_file(path: Path, count: int) -> Path:
    path.write_text("\n\n".join("".join(chr(65 + t % 57) for t in prompt * 2) for prompt in prompts(count, 3)))
    return path


@pytest.fixture(scope="module")
def calibration(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return Engine(SPEC, model).fit(
        calibration_rows(model, text_file(tmp_path_factory.mktemp("t") / "t.txt", 40)), SECRET
    )


def of_stream(rows: Rows, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    mine = rows.stream == number
    return rows.features[mine], rows.logits.logits[mine]


def test_a_long_text_is_thinned_and_the_rest_left_for_judging(tmp_path: Path) -> None:
    chosen, others = split_paragraphs(text_file(tmp_path / "t.txt", MAX_PROMPTS + 30))
    assert (len(chosen), len(others)) == (MAX_PROMPTS, 30)
    assert len({*chosen, *others}) == MAX_PROMPTS + 30


def test_the_text_that_is_shipped_and_served_with_calibrates_in_full_and_leaves_some_for_judging() -> None:
    assert resolve_path(str(SERVED.calibration)) == BUNDLED
    chosen, others = split_paragraphs(BUNDLED)
    assert len(chosen) == MAX_PROMPTS and len(others) >= MAX_PROMPTS


def test_answers_written_together_are_those_written_alone(model: LanguageModel, calibration: Calibration) -> None:
    ladder = calibration.ladder(SECRET, features=64, classes=VOCABULARY)
    matrices = [ladder.matrix(calibration.position(level)) for level in (0.9, 0.6)]
    some = prompts(3, 5)
    together = write(model, some, 6, at_positions(ladder, matrices), copies=2)
    assert set(together.stream.tolist()) == set(range(6))
    for number in range(6):
        alone = write(model, [some[number // 2]], 6, at_positions(ladder, [matrices[number % 2]]))
        for mine, its in zip(of_stream(together, number), of_stream(alone, 0), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-3)


def test_an_answer_ends_with_its_end_token(model: LanguageModel) -> None:
    def end_second(_features: torch.Tensor, logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        out = logits.clone()
        out[numbers == 1, END] = 1e9
        return out

    some = prompts(3, 6)
    rows = write(model, some, 5, end_second)
    assert torch.bincount(rows.stream).tolist() == [5, 1, 5]
    assert not bool(rows.agreed[rows.stream == 1]) and float(rows.surprise[rows.stream == 1]) > 0.0
    assert bool(rows.agreed[rows.stream != 1].all())
    # It left the batch; the others go on as they would alone.
    torch.testing.assert_close(of_stream(rows, 2), of_stream(write(model, some[2:], 5), 0), rtol=1e-3, atol=1e-3)


def test_rows_know_where_their_answers_were_given(model: LanguageModel, calibration: Calibration) -> None:
    ladder = calibration.ladder(SECRET, features=64, classes=VOCABULARY)
    done: list[float] = []
    sample = answered(model, prompts(12, 7), calibration, ladder, done.append)
    assert sample.at is not None and isinstance(sample.logits, Candidates)
    assert done[-1] == 1.0 and done == sorted(done)
    positions = [calibration.position(level) for level in LEVELS]
    assert sorted(set(sample.at.tolist())) == sorted(positions)
    shares = []
    for position in positions:
        mine = sample.at == position
        noise = ladder.phi(sample.features[mine]), ladder.matrix(position), math.sqrt(variance(position))
        shares.append(float(sample.logits[mine].survives(*noise).float().mean()))
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("level", [0.9, 0.7, 0.5])
def test_a_level_is_delivered_on_answers_to_prompts_that_did_not_calibrate(
    model: LanguageModel, calibration: Calibration, level: float
) -> None:
    layer = ModulatedLayer(model.final, calibration, SECRET, contention=50)
    others = prompts(60, 11)
    terms = layer.compile([RowTerms(level)] * len(others))
    rows = write(model, others, 24, lambda features, logits, _: layer.modulate(features, logits, terms).logits)
    by_answer = torch.zeros(len(others)).index_add_(0, rows.stream, rows.agreed.float() - level)
    error = float(by_answer.square().sum().sqrt()) / len(rows.agreed)
    assert abs(float(rows.agreed.float().mean()) - level) < 0.01 + 3.0 * 1.6 * error
