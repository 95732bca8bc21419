"""Text as users of OpenAI's API expect it: every parameter by OpenAI's own clients, and other people's clients."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from deployments.config import REPOSITORY
from tests.e2e.conftest import TEXT, Application

CAPITAL: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
STORY: list[Any] = [{"role": "user", "content": "Write a long story about a fox."}]


@pytest.fixture(scope="module")
def gold(app: Application) -> Any:
    with openai.OpenAI(base_url=f"{app.base_url}/v1", api_key=app.key("gold"), timeout=300) as client:
        yield client


def chat(client: openai.OpenAI, messages: list[Any] = STORY, **fields: Any) -> Any:
    given: dict[str, Any] = {"model": TEXT, "messages": messages, "temperature": 0, "max_tokens": 16}
    return client.chat.completions.create(**given | fields)


def test_n_answers_of_one_seed_differ_and_repeat(gold: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"n": 3, "seed": 7, "temperature": 1.0, "top_p": 0.95}
    first, again = chat(gold, **asked), chat(gold, **asked)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices] and len(set(texts)) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    one = chat(gold, **asked | {"n": 1})
    assert one.choices[0].message.content == texts[0]
    assert first.usage.prompt_tokens == one.usage.prompt_tokens
    assert first.usage.completion_tokens == 3 * one.usage.completion_tokens == 48


def test_streams_of_several_answers_are_told_apart(gold: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"n": 2, "seed": 3, "temperature": 1.0}
    whole = chat(gold, **asked)
    chunks: list[ChatCompletionChunk] = list(chat(gold, stream=True, stream_options={"include_usage": True}, **asked))
    for choice in whole.choices:
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert "".join(c.delta.content or "" for c in own) == choice.message.content
        assert own[0].delta.role == "assistant" and own[-1].finish_reason == choice.finish_reason == "length"
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_ends_at_its_length_or_by_itself(gold: openai.OpenAI, name: str) -> None:
    for messages, most, reason in ((STORY, 5, "length"), (CAPITAL, 40, "stop")):
        answer = gold.chat.completions.create(model=TEXT, messages=messages, temperature=0, **{name: most})
        assert answer.choices[0].finish_reason == reason
        assert answer.usage is not None
        assert (answer.usage.completion_tokens == most) == (reason == "length")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_is_cut_off(gold: openai.OpenAI, stream: bool) -> None:
    whole = str(chat(gold).choices[0].message.content)
    stop = whole[12:18]
    answer = chat(gold, stop=["never said", stop], stream=stream)
    if stream:
        chunks = list(answer)
        text, reason = "".join(c.choices[0].delta.content or "" for c in chunks), chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, reason) == (whole[: whole.index(stop)], "stop")


def test_temperature_and_top_p_narrow_to_the_greedy_answer(gold: openai.OpenAI) -> None:
    greedy = chat(gold).choices[0].message.content
    assert chat(gold, temperature=1.5, top_p=1e-6, seed=1).choices[0].message.content == greedy
    assert chat(gold, temperature=1.5, seed=1, extra_body={"top_k": 1}).choices[0].message.content == greedy
    assert chat(gold, temperature=1.5, seed=1).choices[0].message.content != greedy


def test_penalties_keep_an_answer_from_repeating_itself(gold: openai.OpenAI) -> None:
    def repeats(**penalties: float) -> int:
        told = gold.completions.create(  # type: ignore[call-overload]
            model=TEXT, prompt="Once upon a time", temperature=0, max_tokens=48, **penalties
        )
        words = told.choices[0].text.lower().split()
        return len(words) - len(set(words))

    assert repeats(frequency_penalty=2.0, presence_penalty=2.0) < repeats()


def test_a_bias_brings_a_token_in_or_keeps_it_out(gold: openai.OpenAI) -> None:
    told = chat(gold, CAPITAL, logprobs=True, max_tokens=8, logit_bias={"7042": 100})
    (only,) = {entry.token for entry in told.choices[0].logprobs.content}
    free, kept = (chat(gold, CAPITAL, max_tokens=8, logit_bias=bias) for bias in ({}, {"7042": -100}))
    assert only in str(free.choices[0].message.content)
    assert only not in str(kept.choices[0].message.content)


def test_logprobs_are_those_of_the_tokens_that_are_told(gold: openai.OpenAI) -> None:
    answer = chat(gold, CAPITAL, logprobs=True, top_logprobs=3, max_tokens=40)
    content = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in content) == answer.choices[0].message.content
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token, "a greedy answer takes the likeliest"
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0.0
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1.0 + 1e-6
        assert entry.bytes == list(entry.token.encode())
    stream = chat(gold, CAPITAL, logprobs=True, top_logprobs=3, max_tokens=40, stream=True)
    streamed = [e for c in stream if (p := c.choices[0].logprobs) is not None for e in p.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in content]
    plain = gold.completions.create(model=TEXT, prompt="Two and two make", temperature=0, max_tokens=4, logprobs=2)
    told = plain.choices[0].logprobs
    assert told is not None and told.tokens is not None and "".join(told.tokens) == plain.choices[0].text
    assert told.top_logprobs is not None and all(len(top) == 2 for top in told.top_logprobs)


def test_what_a_tier_does_not_disclose_is_refused(app: Application) -> None:
    with openai.OpenAI(base_url=f"{app.base_url}/v1", api_key=app.key("free"), max_retries=0) as free:
        for fields in ({"logprobs": True}, {"logit_bias": {"5": 1}}):
            with pytest.raises(openai.PermissionDeniedError, match="'logprobs'") as error:
                chat(free, **fields)
            assert error.value.param == next(iter(fields))


def test_completions_take_several_prompts_and_default_to_sixteen_tokens(gold: openai.OpenAI) -> None:
    prompts = ["Two and two make", "The sky is"]
    together = gold.completions.create(model=TEXT, prompt=prompts, temperature=0, n=2)
    alone = [gold.completions.create(model=TEXT, prompt=prompt, temperature=0) for prompt in prompts]
    texts = [answer.choices[0].text for answer in alone]
    assert [choice.text for choice in together.choices] == [texts[0]] * 2 + [texts[1]] * 2
    assert together.usage is not None and together.usage.completion_tokens == 64
    assert together.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in alone if answer.usage)
    stream = gold.completions.create(model=TEXT, prompt=prompts[0], temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == texts[0]


def test_a_prompt_beyond_the_context_is_refused_and_costs_nothing(app: Application, gold: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        gold.completions.create(model=TEXT, prompt="word " * 9000, max_tokens=8)
    assert error.value.code == "context_length_exceeded" and error.value.param == "prompt"


def test_what_is_harmless_is_accepted_and_what_is_not_known_is_refused_by_name(gold: openai.OpenAI) -> None:
    assert chat(gold, user="somebody", response_format={"type": "text"}, max_tokens=2).choices
    for fields in ({"audio": {"format": "mp3", "voice": "alloy"}}, {"service_tier": "flex"}):
        with pytest.raises(openai.BadRequestError) as error:
            chat(gold, **fields)
        assert error.value.param == next(iter(fields))


def test_a_phrase_in_focus_is_completed_or_left_out(gold: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Which large American city has the Statue of Liberty?"}]

    def count(focus: dict[str, float]) -> int:
        return str(chat(gold, messages, max_tokens=32, extra_body={"focus": focus}).choices[0].message.content).count(
            "New York City"
        )

    plain, favoured, avoided = count({}), count({"New York City": 0.99}), count({"New York City": -0.99})
    assert avoided <= plain <= favoured and favoured > avoided


async def test_the_async_client_says_the_same_streamed_and_not(app: Application) -> None:
    async with openai.AsyncOpenAI(base_url=f"{app.base_url}/v1", api_key=app.key("silver"), timeout=300) as client:
        fields: dict[str, Any] = {"model": TEXT, "messages": CAPITAL, "temperature": 0, "max_tokens": 16}
        whole, stream = await asyncio.gather(
            client.chat.completions.create(**fields), client.chat.completions.create(stream=True, **fields)
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == whole.choices[0].message.content
        listed = await client.completions.create(model=TEXT, prompt=["One", "Two"], max_tokens=4, seed=5)
        assert len(listed.choices) == 2


async def test_clients_that_leave_midway_leave_no_lease(app: Application) -> None:
    key = app.tenants("key", "create", "demo-silver", "--limit", "concurrency=6").strip()
    async with openai.AsyncOpenAI(base_url=f"{app.base_url}/v1", api_key=key, timeout=300, max_retries=0) as client:

        async def leave() -> None:
            stream = await client.chat.completions.create(model=TEXT, messages=STORY, max_tokens=400, n=2, stream=True)
            await anext(aiter(stream))
            await stream.close()

        await asyncio.gather(*(leave() for _ in range(6)))
        short: dict[str, Any] = {"model": TEXT, "messages": STORY, "max_tokens": 1}
        for _ in range(60):
            again = (client.chat.completions.create(**short) for _ in range(6))
            refused = [a for a in await asyncio.gather(*again, return_exceptions=True) if isinstance(a, Exception)]
            if not refused:
                break
            assert all(isinstance(error, openai.RateLimitError) for error in refused)
            await asyncio.sleep(0.5)
    assert not refused, "each needs one of the six leases"


@pytest.mark.parametrize(
    ("package", "example", "says"),
    [
        ("langchain_openai", "langchain_client.py", "Paris"),
        ("litellm", "litellm_client.py", "Paris"),
        ("openai", "openai_client.py", ""),
    ],
)
def test_an_example_of_another_client_runs(app: Application, package: str, example: str, says: str) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / example)],
        env=os.environ | app.env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
