"""OpenAI's API as its own client sees it, over a gateway whose engine is a script: forms, checks, accounts."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import openai
import pytest

from deployments.config import GatewayArgs
from deployments.gateway.settings import Settings
from policies.terms import Tier
from tests.deployments.openai_support import MODEL, QUESTION, Script


async def test_every_answer_of_a_chat_comes_whole(client: openai.AsyncOpenAI, script: Script) -> None:
    answer = await client.chat.completions.create(model="text", messages=QUESTION, n=3, max_tokens=10)
    assert [c.message.content for c in answer.choices] == ["Hello 0", "Hello 1", "Hello 2"]
    assert [(c.index, c.finish_reason) for c in answer.choices] == [(0, "stop"), (1, "length"), (2, "length")]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 9, 16)
    assert script.settled == {"tokens_in": 7, "tokens_out": 9}


async def test_a_stream_has_a_role_pieces_and_a_reason_for_each_answer_and_usage_last(
    client: openai.AsyncOpenAI,
) -> None:
    stream = await client.chat.completions.create(
        model="text", messages=QUESTION, n=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    for index in range(2):
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert [c.delta.role for c in own] == ["assistant", None, None, None]
        assert "".join(c.delta.content or "" for c in own) == f"Hello {index}"
        assert [c.finish_reason for c in own] == [None, None, None, "length" if index else "stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 6
    assert all(chunk.usage is None for chunk in chunks[:-1]) and len({chunk.id for chunk in chunks}) == 1


async def test_the_framing_is_that_of_server_sent_events(client: openai.AsyncOpenAI) -> None:
    body = {"model": "text", "messages": QUESTION, "stream": True}
    response = await client._client.post("http://gateway/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and all(event.startswith("data: {") for event in events[:-2])
    assert '"usage"' not in response.text


async def test_an_error_in_a_stream_is_its_last_event_before_done(client: openai.AsyncOpenAI, script: Script) -> None:
    script.fails = True
    stream = await client.chat.completions.create(model="text", messages=QUESTION, stream=True)
    with pytest.raises(openai.APIError, match="has stopped") as error:
        [chunk async for chunk in stream]
    assert error.value.code == "engine_stopped"
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="text", messages=QUESTION)
    assert script.released == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_is_booked_as_far_as_it_was_read_where_the_client_leaves_before_the_first_token(
    client: openai.AsyncOpenAI, script: Script, stream: bool
) -> None:
    script.reads = asyncio.Event()
    create: Any = client.chat.completions.create
    asked = asyncio.create_task(create(model="text", messages=QUESTION, stream=stream))
    await script.reads.wait()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert script.settled == {"tokens_in": 5, "tokens_out": 0} and script.released == 1
    # An answer begins with its first token: until then an error is a status, of a stream, too.
    script.fails = True
    with pytest.raises(openai.InternalServerError):
        await create(model="text", messages=QUESTION, stream=stream)


async def test_a_completion_takes_several_prompts_and_tokens(client: openai.AsyncOpenAI, script: Script) -> None:
    answer = await client.completions.create(model="text", prompt=["a", "b"], n=2)
    assert [c.text for c in answer.choices] == [f"Hello {index}" for index in range(4)]
    await client.completions.create(model="text", prompt=[1, 2, 3])
    await client.completions.create(model="text", prompt=[[1, 2], [3]], max_tokens=5)
    assert [asked for asked, _ in script.asked] == [["a", "b"], [[1, 2, 3]], [[1, 2], [3]]]
    assert [params["max_tokens"] for _, params in script.asked] == [16, 16, 5]


async def test_every_parameter_reaches_the_engine(client: openai.AsyncOpenAI, script: Script) -> None:
    given: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
    }
    others = {"top_k": 40, "min_p": 0.1, "ignore_eos": True, "min_tokens": 3, "repetition_penalty": 1.5}
    await client.chat.completions.create(
        model="text",
        messages=QUESTION,
        stop=["x", ""],
        logit_bias={"5": -100},
        max_completion_tokens=9,
        logprobs=True,
        top_logprobs=2,
        response_format={"type": "text"},
        user="somebody",
        extra_body=others | {"stop_token_ids": [7, 8]},
        **given,
    )
    expected = given | others | {
        "n": 1, "max_tokens": 9, "stop": ("x",), "stop_token_ids": (7, 8), "logit_bias": ((5, -100.0),), "logprobs": 2,
        "whole": True,
    }  # fmt: skip
    assert script.asked[0][1] == expected


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type": "object"}'),
        # As llama.cpp's and Together's users have it: a schema beside json_object, and one without a name.
        ({"response_format": {"type": "json_object", "schema": {"const": 4}}}, "json_schema", '{"const": 4}'),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 4}}}},
            "json_schema",
            '{"const": 4}',
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "null"}}}},
            "json_schema", '{"type": "null"}',
        ),
        ({"structured_outputs": {"json": {"type": "null"}}}, "json_schema", '{"type": "null"}'),
        ({"structured_outputs": {"json_object": True}}, "json_schema", '{"type": "object"}'),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", '["a", "b"]'),
        ({"guided_json": '{"type": "null"}'}, "json_schema", '{"type": "null"}'),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a", "b"]}, "choice", '["a", "b"]'),
    ],
)  # fmt: skip
async def test_what_the_answer_must_be_reaches_the_engine_by_whichever_name(
    client: openai.AsyncOpenAI, script: Script, fields: dict[str, Any], kind: str, text: str
) -> None:
    await client.chat.completions.create(model="text", messages=QUESTION, extra_body=fields)
    await client.completions.create(model="text", prompt="a", extra_body=fields)
    for _, params in script.asked:
        grammar = params["grammar"]
        assert (grammar.kind, grammar.text, grammar.param) == (kind, text, next(iter(fields)))


async def test_logprobs_have_the_form_of_either_call(client: openai.AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(model="text", messages=QUESTION, logprobs=True, top_logprobs=2)
    assert chat.choices[0].logprobs is not None and chat.choices[0].logprobs.content is not None
    first, second = chat.choices[0].logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("Hel", -0.5, list(b"Hel"))
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("Hel", -0.5), ("Hol", -1.5)]
    plain = await client.completions.create(model="text", prompt="a", logprobs=2)
    told = plain.choices[0].logprobs
    assert told is not None and (told.tokens, told.token_logprobs) == (["Hel", "lo"], [-0.5, -0.25])
    assert told.text_offset == [0, 3]
    assert told.top_logprobs == [{"Hel": -0.5, "Hol": -1.5}, {"lo": -0.25}]
    alone = (await client.completions.create(model="text", prompt="a", logprobs=0)).choices[0].logprobs
    assert alone is not None and alone.top_logprobs is not None
    stream = await client.chat.completions.create(model="text", messages=QUESTION, logprobs=True, stream=True)
    tokens = [
        t.token async for c in stream if (p := c.choices[0].logprobs) is not None and p.content for t in p.content
    ]
    assert tokens == ["Hel", "lo"]
    none = await client.chat.completions.create(model="text", messages=QUESTION)
    assert none.choices[0].logprobs is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1}, "utility": 0.8}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}, "response_format"),
        ({"structured_outputs": {"json_object": True}}, "structured_outputs"),
        ({"guided_choice": ["a", "b"]}, "guided_choice"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
    ],
)
async def test_scores_need_the_tiers_grant(
    client: openai.AsyncOpenAI, script: Script, fields: dict[str, Any], param: str
) -> None:
    script.tier = Tier(name="silver", utility=0.9)
    with pytest.raises(openai.PermissionDeniedError, match="'logprobs'") as error:
        await client.chat.completions.create(model="text", messages=QUESTION, extra_body=fields)
    assert error.value.param == param and not script.costs
    script.tier = Tier(name="silver", utility=0.9, logprobs=True)
    await client.chat.completions.create(model="text", messages=QUESTION, extra_body=fields)
    with pytest.raises(openai.PermissionDeniedError, match="1 label") as error:
        await client.chat.completions.create(model="text", messages=QUESTION, logprobs=True, top_logprobs=2)
    assert error.value.param == "top_logprobs"
    script.tier = Tier(name="gold", utility=1.0)
    await client.chat.completions.create(model="text", messages=QUESTION, logprobs=True, top_logprobs=2)
    with pytest.raises(openai.PermissionDeniedError):
        lowered = {"utility": 0.5, "logprobs": True}
        await client.chat.completions.create(model="text", messages=QUESTION, extra_body=lowered)


async def test_admission_counts_every_answer_at_its_longest(client: openai.AsyncOpenAI, script: Script) -> None:
    for n in (1, 5):
        await client.chat.completions.create(model="text", messages=QUESTION, n=n, max_tokens=100)
    assert script.costs[1] - script.costs[0] == 400
    for prompt in (["a"], ["a", "a", "a"]):
        await client.completions.create(model="text", prompt=prompt, n=2, max_tokens=100)
    assert script.costs[3] - script.costs[2] == 402, "of each prompt one token more"


async def test_admission_counts_a_prompt_by_its_tokens_and_an_answer_by_the_room_it_has(
    client: openai.AsyncOpenAI, script: Script
) -> None:
    for prompt in ("a" * 39, "a" * 3199, list(range(30))):
        await client.completions.create(model="text", prompt=prompt, max_tokens=20)
    assert script.costs == [10 + 20, 800 + 20, 30 + 20]
    await client.chat.completions.create(model="text", messages=[{"role": "user", "content": "a" * 3000}])
    (message,) = script.encoded[-1:]
    tokens = len(str(message)) // 4 + 1
    assert script.costs[-1] == 1000, f"{tokens} of the prompt's, and what is left of the context"


async def test_the_context_is_checked_before_admission(client: openai.AsyncOpenAI, script: Script) -> None:
    await client.completions.create(model="text", prompt="word " * 20)
    await client.completions.create(model="text", prompt="word " * 190)
    assert len(script.encoded) == len(script.costs) == 2, "each is encoded once"
    too_long: list[dict[str, Any]] = [
        {"prompt": "word " * 900},
        {"prompt": list(range(1000))},
        {"prompt": "a" * 70_000},
    ]
    sentence = "This model's maximum context length is 1000 tokens. However, "
    for fields in too_long:
        with pytest.raises(openai.BadRequestError, match=re.escape(sentence)) as error:
            await client.completions.create(model="text", **fields)
        assert (error.value.code, error.value.param) == ("context_length_exceeded", "prompt")
    assert len(script.costs) == 2


async def test_an_answer_longer_than_the_context_has_room_for_is_as_long_as_that(
    client: openai.AsyncOpenAI, script: Script
) -> None:
    """Editors ask for 4096 tokens of any model; a strict gateway refuses that, as OpenAI does."""
    fields: dict[str, Any] = {"model": "text", "prompt": list(range(990)), "max_tokens": 4096}
    await client.completions.create(**fields)
    assert script.costs == [1000]
    script.settings = Settings(GatewayArgs(strict=True))
    for more in ({}, {"max_tokens": 11}):
        with pytest.raises(openai.BadRequestError) as error:
            await client.completions.create(**fields | more)
        assert error.value.code == "context_length_exceeded"
    await client.completions.create(**fields | {"max_tokens": 10})
    assert len(script.costs) == 2


async def test_a_chat_without_a_limit_is_as_long_as_the_deployment_says(
    client: openai.AsyncOpenAI, script: Script
) -> None:
    for most in (100, 4000):
        script.settings = Settings(GatewayArgs(default_max_tokens=most))
        await client.chat.completions.create(model="text", messages=QUESTION)
    tokens = len(str(script.encoded[-1])) // 4 + 1
    assert script.costs == [tokens + 100, 1000]


@pytest.mark.parametrize(("each", "read"), [(None, 64_000), (16, 16_000), (90, 90_000)])
async def test_what_is_too_long_whatever_it_says_is_not_read(
    client: openai.AsyncOpenAI, script: Script, monkeypatch: pytest.MonkeyPatch, each: int | None, read: int
) -> None:
    """And what may fit is read, however long: a token of ninety spaces is one of a thousand."""
    monkeypatch.setattr(script, "entitle", lambda *_: MODEL.model_copy(update={"characters": each}))
    for prompt in ("a" * (read + 1), "\U0001f600" * (read + 1)):
        with pytest.raises(openai.BadRequestError, match=f"{read + 1} characters"):
            await client.completions.create(model="text", prompt=prompt, max_tokens=1)
    with pytest.raises(openai.BadRequestError, match=f"{read + 1} characters"):
        halves = [{"role": "user", "content": "a" * (read // 2)}, {"role": "user", "content": "a" * (read // 2 + 1)}]
        await client.chat.completions.create(model="text", messages=halves)  # type: ignore[arg-type]
    assert not script.encoded
    with pytest.raises(openai.BadRequestError, match="your prompt resulted in"):
        await client.completions.create(model="text", prompt="a" * read, max_tokens=1)
    assert len(script.encoded) == 1


async def test_half_a_character_is_replaced_wherever_a_text_holds_it(
    client: openai.AsyncOpenAI, script: Script
) -> None:
    half, whole = "a\ud83d", "whole \U0001f600"
    for path, fields in (
        ("chat/completions", {"messages": [{"role": "user", "content": half}], "stop": [half]}),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": half}]}], "stop": half},
        ),
        ("completions", {"prompt": [half, whole]}),
    ):
        content = json.dumps({"model": "text", **fields})  # escaped, as clients in JavaScript send it
        headers = {"content-type": "application/json"}
        answer = await client._client.post(f"http://gateway/v1/{path}", content=content, headers=headers)
        assert answer.status_code == 200, answer.text
    for prompt, params in script.asked[:2]:
        assert (prompt[0]["content"], params["stop"]) == ("a\ufffd", ("a\ufffd",))
    assert script.asked[2][0] == ["a\ufffd", whole]
