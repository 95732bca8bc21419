"""Tools as OpenAI's client sees them, over a gateway whose engine is a script: offered, forced, read, answered."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from deployments.contracts.tools import TOOLS_ROLE, CallForm
from deployments.gateway.api.tool_calls import CallReader
from policies.terms import Tier
from tests.deployments.openai_support import MODEL, QUESTION, Script

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}
# What templates are told of it: Hermes's refuses a function without these.
WHOLE: Any = {
    "type": "function",
    "function": {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}},
}
ONE = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
TWO = ONE + '\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
CALLED = [("weather", {"city": "Köln"}), ("clock", {})]


@pytest.fixture
def script(script: Script) -> Script:
    script.model = MODEL.model_copy(update={"tools": CallForm.HERMES})
    return script


def read(calls: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls or []]


def pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
async def test_calls_are_read_whole_and_streamed_wherever_the_pieces_fall(
    client: openai.AsyncOpenAI, script: Script, size: int
) -> None:
    script.said = pieces(f"I look.\n{TWO}", size)
    asked: dict[str, Any] = {"model": "text", "messages": QUESTION, "tools": [WEATHER, CLOCK]}
    answer = (await client.chat.completions.create(**asked)).choices[0]
    assert (answer.finish_reason, answer.message.content) == ("tool_calls", "I look.")
    assert read(answer.message.tool_calls) == CALLED
    async with client.chat.completions.stream(**asked) as stream:
        final = (await stream.get_final_completion()).choices[0]
    assert final.finish_reason == "tool_calls" and read(final.message.tool_calls) == CALLED
    assert (final.message.content or "").strip() == "I look."
    ids = {call.id for call in [*(answer.message.tool_calls or []), *(final.message.tool_calls or [])]}
    assert len(ids) == 4 and all(name.startswith("call_") for name in ids)


@pytest.mark.parametrize(
    "text",
    [
        "no call at all <tool",
        "<tool_call>\nnonsense\n</tool_call>",
        '<tool_call>{"name": "another", "arguments": {}}</tool_call> and on',
        '<tool_call>{"name": "weather", "arguments": "x"}</tool_call>',
        '<tool_call>{"name": "weather", "argu',
        "<tool_call>" + "[" * 5000 + "</tool_call>",
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_only_looks_like_a_call_stays_words(text: str, size: int) -> None:
    reader = CallReader(CallForm.HERMES, {"weather"})
    parts = pieces(text, size)
    told = [reader.push(part, last=at == len(parts) - 1) for at, part in enumerate(parts)]
    assert "".join(words for words, _ in told) == text and not reader.called


@pytest.mark.parametrize(
    ("form", "text", "called"),
    [
        (CallForm.LLAMA, '{"name": "weather", "parameters": {"city": "Köln"}}', CALLED[:1]),
        (CallForm.LLAMA, '\n{"name": "clock", "parameters": {}}; {"name": "clock", "parameters": {}}', [CALLED[1]] * 2),
        (CallForm.LLAMA, '{"name": "nobody", "parameters": {}}', []),
        (CallForm.LLAMA, "It is {late}.", []),
        (CallForm.TOLD, f"<tool_call>[{json.dumps({'name': 'clock', 'arguments': {}})}]</tool_call>", CALLED[1:]),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_each_form_of_calls_is_read(form: CallForm, text: str, called: list[Any], size: int) -> None:
    reader = CallReader(form, {"weather", "clock"})
    parts = pieces(text, size)
    told = [reader.push(part, last=at == len(parts) - 1) for at, part in enumerate(parts)]
    assert [(call.name, json.loads(call.arguments)) for _, calls in told for call in calls] == called
    assert [call.at for _, calls in told for call in calls] == list(range(len(called)))
    assert called or "".join(words for words, _ in told) == text


async def test_the_template_is_told_of_tools_calls_and_answers(client: openai.AsyncOpenAI, script: Script) -> None:
    call: Any = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "CET"}'}}
    turns: Any = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
    ]
    await client.chat.completions.create(model="text", messages=turns, tools=[CLOCK])
    tools, question, called, answered = script.encoded[0]
    assert (tools["role"], tools["form"], json.loads(tools["content"])) == (TOOLS_ROLE, "hermes", [WHOLE])
    assert question == {"role": "user", "content": "Hi"}
    assert called["tool_calls"][0]["function"] == {"name": "clock", "arguments": {"zone": "CET"}}
    assert answered == {"role": "tool", "tool_call_id": "c1", "content": "12:00"}
    # None are offered, but the conversation has them.
    await client.chat.completions.create(model="text", messages=turns, tools=[CLOCK], tool_choice="none")
    assert json.loads(script.encoded[1][0]["content"]) == []


@pytest.mark.parametrize(
    ("choice", "several", "names"),
    [
        ("required", True, {"weather", "clock"}),
        ("required", False, {"weather", "clock"}),
        ({"type": "function", "function": {"name": "clock"}}, True, {"clock"}),
    ],
)
async def test_a_call_that_is_asked_for_is_a_grammar_and_needs_its_grant(
    client: openai.AsyncOpenAI, script: Script, choice: Any, several: bool, names: set[str]
) -> None:
    asked: dict[str, Any] = {
        "model": "text", "messages": QUESTION, "tools": [WEATHER, CLOCK], "tool_choice": choice,
        "parallel_tool_calls": several,
    }  # fmt: skip
    await client.chat.completions.create(**asked)
    grammar = script.asked[0][1]["grammar"]
    assert grammar.param == "tool_choice"
    assert {name for name in ("weather", "clock") if f'\\"{name}\\"' in grammar.text} == names
    assert ("{0,15}" in grammar.text) == (several and choice == "required")
    for free in ({"tool_choice": "auto"}, {"tool_choice": "none"}):
        await client.chat.completions.create(**asked | free)
        assert "grammar" not in script.asked[-1][1]
    script.tier = Tier(name="silver", utility=0.9)
    await client.chat.completions.create(**asked | {"tool_choice": "auto"})
    with pytest.raises(openai.PermissionDeniedError, match="'logprobs'") as refused:
        await client.chat.completions.create(**asked)
    assert refused.value.param == "tool_choice"


class Clock(BaseModel):
    """The time."""

    zone: str


async def test_what_openais_client_parsed_is_taken_back_as_it_is(client: openai.AsyncOpenAI, script: Script) -> None:
    script.said = ['<tool_call>{"name": "Clock", "arguments": {"zone": "CET"}}</tool_call>']
    tools: Any = [openai.pydantic_function_tool(Clock)]
    asked: dict[str, Any] = {"model": "text", "messages": QUESTION, "tools": tools}
    parsed = (await client.chat.completions.parse(**asked)).choices[0].message
    async with client.chat.completions.stream(**asked) as stream:
        streamed = (await stream.get_final_completion()).choices[0].message
    for message in (parsed, streamed):
        (call, *_) = message.tool_calls or []
        assert call.function.parsed_arguments == Clock(zone="CET")
        turns: Any = [*QUESTION, message, {"role": "tool", "tool_call_id": call.id, "content": "12:00"}]
        await client.chat.completions.create(model="text", messages=turns, tools=tools)
        assert script.encoded[-1][2]["tool_calls"][0]["function"] == {"name": "Clock", "arguments": {"zone": "CET"}}


async def test_a_model_that_calls_no_tools_is_named(client: openai.AsyncOpenAI, script: Script) -> None:
    script.model = MODEL
    turns: Any = [*QUESTION, {"role": "tool", "tool_call_id": "c", "content": "x"}]
    for fields in ({"tools": [CLOCK]}, {"messages": turns}):
        with pytest.raises(openai.BadRequestError, match="text calls no tools") as refused:
            await client.chat.completions.create(**{"model": "text", "messages": QUESTION, **fields})  # type: ignore[call-overload]
        assert refused.value.param == "tools"
    await client.chat.completions.create(model="text", messages=QUESTION, tools=[CLOCK], tool_choice="none")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice"),
        ({"tools": [CLOCK, CLOCK]}, "tools"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
        (
            {
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
            },
            "tools[0].function.parameters",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "["}}]}
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
async def test_what_cannot_be_called_is_refused_by_name(
    client: openai.AsyncOpenAI, fields: dict[str, Any], param: str
) -> None:
    asked = {"model": "text", "messages": QUESTION, "tools": [CLOCK], **fields}
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(**asked)  # type: ignore[call-overload]
    assert refused.value.param == param
