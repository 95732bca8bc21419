"""What of OpenAI's API is not served, or asked for out of range: refused by name."""

from __future__ import annotations

import json
from functools import reduce
from typing import Any

import openai
import pytest
from pydantic import BaseModel, ValidationError

from deployments.gateway.api.embeddings import EmbeddingRequest
from deployments.gateway.api.response_schemas import ResponseRequest
from deployments.gateway.api.text_schemas import ChatRequest, CompletionRequest
from policies.errors import InvalidRequest
from tests.deployments.openai_support import QUESTION


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_object", "json_schema": {"name": "a", "schema": {}}}},
            "response_format.json_schema",
        ),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema"),
        ({"response_format": {"type": "json_object", "schema": 123}}, "response_format.schema"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [""]}, "guided_choice[0]"),
        ({"guided_grammar": "root ::= x"}, "guided_grammar"),
        ({"guided_regex": "a" * 200_000}, "guided_regex"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs.grammar"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"stop": ["a"] * 33}, "stop"),
        ({"stop": 5}, "stop"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": "much"}, "presence_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
async def test_what_is_not_supported_is_refused_by_name(
    client: openai.AsyncOpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        await client.chat.completions.create(model="text", messages=QUESTION, extra_body=fields)
    assert error.value.param == param


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"logprobs": 5}, "a number was sent; send true or false"),
        ({"logprobs": "some"}, "a string was sent; send true or false"),
        ({"logprobs": True, "top_logprobs": "all"}, "a string was sent; send a whole number"),
        ({"max_tokens": 1.5}, "a number was sent; send a whole number"),
        ({"temperature": "hot"}, "a string was sent; send a number"),
        (
            {"messages": [{"role": "user", "content": [7]}]},
            "content[0]': a number was sent; send an object",
        ),
        ({"logit_bias": {"5": "x"}}, "'logit_bias.5': a string was sent; send a number"),
    ],
)
async def test_a_value_of_another_kind_is_told_by_what_it_is(
    client: openai.AsyncOpenAI, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        await client.chat.completions.create(model="text", messages=QUESTION, extra_body=fields)
    assert said in error.value.message


async def test_a_completions_logprobs_is_a_number(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="how many of the likeliest"):
        await client.completions.create(model="text", prompt="a", extra_body={"logprobs": True})
    none = await client.completions.create(model="text", prompt="a", extra_body={"logprobs": False})
    assert none.choices[0].logprobs is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"prompt": "a", "logprobs": 6}, "logprobs"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
    ],
)
async def test_what_a_completion_cannot_take_is_refused_by_name(
    client: openai.AsyncOpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        await client.completions.create(model="text", **{"prompt": "a"} | fields)
    assert error.value.param == param


ODD: list[Any] = [42, "x", [], {}, True, 1.5, [1], [True], ["x", 1], [[]], [{}], {"a": 1}]
ODD += [{"type": kind} for kind in ("function", "json_schema", "allowed_tools", "perhaps")]
TOOL = {"type": "function", "function": {"name": "f"}}
CALLED = {"function": {"name": "f", "arguments": "{}"}}
ITEM = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
BODIES: list[tuple[type[BaseModel], dict[str, Any], list[tuple[Any, ...]]]] = [
    (
        ChatRequest,
        {
            **{"model": "m", "tools": [TOOL], "tool_choice": TOOL, "structured_outputs": {"json": {}}},
            "messages": [{"role": "assistant", "content": [{"type": "text", "text": "a"}], "tool_calls": [CALLED]}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}},
        },
        [
            *(("messages", 0, name) for name in ("role", "content", "tool_calls", "tool_call_id")),
            *(("messages", 0, "content", 0), ("messages", 0, "tool_calls", 0, "function", "arguments")),
            *(
                ("tools", 0),
                ("tools", 0, "function"),
                ("tools", 0, "function", "parameters"),
                ("tool_choice", "function"),
            ),
            *(
                ("structured_outputs", "json"),
                ("response_format", "json_schema", "schema"),
                ("response_format", "schema"),
            ),
        ],
    ),
    (CompletionRequest, {"model": "m", "prompt": "x"}, []),
    (
        ResponseRequest,
        {"model": "m", "input": [ITEM, {"role": "user", "content": []}], "text": {}, "tool_choice": {}},
        [
            ("input", 0),
            ("input", 0, "arguments"),
            ("input", 1, "content"),
            ("text", "format"),
            ("tool_choice", "tools"),
        ],
    ),
    (EmbeddingRequest, {"model": "m", "input": "x"}, []),
]


@pytest.mark.parametrize(("model", "body", "within"), BODIES)
def test_a_refusal_points_to_what_was_sent_or_to_what_is_missing_there(
    model: type[BaseModel], body: dict[str, Any], within: list[tuple[Any, ...]]
) -> None:
    """Never to a branch of a union, as `guided_json.str` and `tool_choice.literal['none','auto','required']` were."""
    refused = 0
    for place in [*((name,) for name in model.model_fields), *within]:
        for odd in ODD:
            sent = json.loads(json.dumps(body))
            reduce(lambda at, part: at[part], place[:-1], sent)[place[-1]] = odd
            try:
                model.model_validate(sent)
            except InvalidRequest:
                continue
            except ValidationError as error:
                first = error.errors()[0]
                *ways, last = [part for part in first["loc"] if part != "[key]"]
                at = reduce(lambda at, part: at[part], ways, sent)
                assert first["type"] == "missing" or at[last] is not None, (place, odd, first["loc"])
                refused += 1
    assert refused > 10 * len(model.model_fields) / 2
