"""Which architectures of language models the engine serves, token for token as `generate`, and which it refuses.

All take some minutes: a quarter is run unless MATRIX says otherwise, as `make matrix` does.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from deployments.config import REPOSITORY
from deployments.engines.errors import LoadError
from deployments.engines.text.engine import CLEAN
from deployments.engines.text.generator import Generator
from deployments.engines.text.loading.attention import alone
from deployments.engines.text.smoke import TIE
from policies.calibration.answering import CANDIDATES
from policies.calibration.candidates import Candidates
from policies.calibration.sample import CalibrationSample
from policies.head.slots import Setting
from tests.deployments.shards import shard
from tests.deployments.text_families import (
    NAMES,
    NOT_BUILT,
    ORIGINAL,
    REFUSED,
    VARIANTS,
    VOCABULARY,
    write,
)

ANSWER = 12
LENGTHS = (5, 40, 150)
SECRET = b"a secret for the tests"
SERVED = [name for name in NAMES if name not in REFUSED and name not in NOT_BUILT]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No trace of what kills transformers' loop, which some of these tests are for."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (length,), generator=draw).tolist() for length in LENGTHS]


async def answers(generator: Generator, setting: Setting = CLEAN) -> list[list[int]]:
    """The engine's tokens to all prompts at once."""
    return await asyncio.gather(*(generator.engine.greedy(prompt, ANSWER, setting) for prompt in prompts()))


@torch.no_grad()
def generated(model: Any, prompt: list[int]) -> tuple[list[int], list[float]]:
    """What `generate` answers, and each step's gap between the two best tokens."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=ANSWER,
        return_dict_in_generate=True,
        output_logits=True,
    )
    gaps = [float(row[0].topk(2).values.diff().abs()) for row in out.logits]
    return out.sequences[0, len(prompt) :].tolist(), gaps


def check_as_generate(folder: Path, got: list[list[int]], attention: str) -> None:
    ties, saved = 0, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    for prompt, mine in zip(prompts(), got, strict=True):
        wanted, gaps = generated(saved.eval(), prompt)
        length = len(wanted)
        differs = next((i for i in range(length) if mine[i : i + 1] != wanted[i : i + 1]), None)
        ties += differs is not None
        assert differs is None or gaps[differs] < TIE, f"prompt of {len(prompt)}: token {differs}, gap {gaps[differs]}"
    assert ties <= 1 and any(len(set(tokens)) > 4 for tokens in got), "the model says the same all the time"


def calibrate(generator: Generator) -> None:
    """Roughly, on its own answers' steps: enough to know where its levels are about."""
    features: list[Tensor] = []

    async def steps() -> None:
        for prompt in prompts() * 3:
            await generator.engine.greedy(prompt[-20:], 2 * ANSWER, features=features)
            prompt.reverse()

    asyncio.run(steps())
    rows = torch.stack(features)
    sample = CalibrationSample(rows, Candidates.of_features(rows, generator.clean_logits, CANDIDATES))
    generator.install(generator.fit(sample, SECRET), SECRET)


async def check_terms(generator: Generator, clean: list[list[int]]) -> None:
    """Level 1.0 is the same behind a head, a level below it is delivered, and focus moves what it names."""
    assert await answers(generator) == clean
    assert await answers(generator, Setting(0.5)) != clean
    steps, agreed = generator.audit()[0.5]
    assert 0.1 * steps < agreed < 0.95 * steps
    spoken = [token for tokens in clean for token in tokens]
    word = max(set(spoken), key=spoken.count)
    avoiding = await answers(generator, Setting(focus={word: -0.99}))
    assert sum(tokens.count(word) for tokens in avoiding) < spoken.count(word)


@pytest.mark.parametrize("family", shard([*SERVED, *VARIANTS]))
def test_an_answer_is_that_of_generate_at_level_one_and_moves_with_its_terms(family: str, tmp_path: Path) -> None:
    model_type, more = VARIANTS.get(family, (family, {}))
    generator = Generator.load(write(tmp_path, model_type, more), torch.device("cpu"))
    try:
        got = asyncio.run(answers(generator))
        with alone(generator.language_model.model):
            attention = generator.language_model.model.config._attn_implementation
        check_as_generate(tmp_path, got, attention)
        calibrate(generator)
        asyncio.run(check_terms(generator, got))
    finally:
        generator.close()


@pytest.mark.parametrize("family", shard(list(REFUSED)))
def test_what_the_engine_cannot_serve_is_refused_at_load_in_one_line(family: str, tmp_path: Path) -> None:
    spec = write(tmp_path, family)
    with pytest.raises(LoadError) as refused:
        Generator.load(spec, torch.device("cpu"))
    said = str(refused.value)
    print(said)
    assert re.match(rf"{family}: \w+ {re.escape(REFUSED[family])}", said) and "\n" not in said


FULL = {"layer_types": ["full_attention", "full_attention"]}


@pytest.mark.parametrize(("family", "more"), [("gemma2", FULL), ("gpt_oss", FULL), ("bloom", {}), ("gpt_neox", {})])
def test_a_beginning_that_prompts_share_is_read_once_and_answered_the_same(
    family: str, more: dict[str, Any], tmp_path: Path
) -> None:
    draw = torch.Generator().manual_seed(2)
    beginning = torch.randint(VOCABULARY, (140,), generator=draw).tolist()
    asked = [beginning + torch.randint(VOCABULARY, (n,), generator=draw).tolist() for n in (3, 9, 40)]
    generator = Generator.load(write(tmp_path, family, more), torch.device("cpu"))
    try:
        cache = generator.engine._manager.batch_processor.cache
        match, matched = cache.search_prefix_match, list[int]()
        cache.search_prefix_match = lambda *given: matched.append(match(*given)) or matched[-1]
        got = [asyncio.run(generator.engine.greedy(prompt, ANSWER)) for prompt in asked]
    finally:
        generator.close()
    assert matched == [0, 128, 128]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for prompt, mine in zip(asked, got, strict=True):
        wanted, gaps = generated(saved, prompt)
        differs = next((i for i in range(ANSWER) if mine[i : i + 1] != wanted[i : i + 1]), None)
        assert differs is None or gaps[differs] < TIE


def test_every_family_is_told_in_the_docs() -> None:
    told = (REPOSITORY / "docs" / "text-models.md").read_text()
    rows = {line.split("|")[1].strip(): line.split("|")[2] for line in told.splitlines() if line.startswith("| ")}
    named = {kind: set(re.findall(r"`([\w-]+)`", row)) for kind, row in rows.items()}
    assert named["served"] == set(SERVED)
    refused = {name for kind, names in named.items() if kind.startswith("refused") for name in names}
    assert refused == set(REFUSED)
    assert named["not tried"] == set(NOT_BUILT)
    counts = f"{len(SERVED)} served, {len(REFUSED)} refused, {len(NOT_BUILT)} not tried"
    assert counts in " ".join(told.split()) and len(SERVED) + len(REFUSED) + len(NOT_BUILT) == len(NAMES)


def test_a_model_is_served_up_to_where_longrope_changes_its_frequencies(tmp_path: Path) -> None:
    generator = Generator.load(write(tmp_path, *VARIANTS["phi3 longrope"]), torch.device("cpu"))
    generator.close()
    assert generator.context == ORIGINAL
