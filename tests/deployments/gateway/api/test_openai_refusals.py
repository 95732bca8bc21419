"""What of OpenAI's API is not served, or asked for out of range: refused by name."""

from __future__ import annotations

from typing import Any

import openai
import pytest

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
