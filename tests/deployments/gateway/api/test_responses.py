"""Responses as OpenAI's own client sees them, over a gateway whose engine is a script; its types judge every form."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from deployments.contracts.catalog import TextDelta
from deployments.contracts.grammar import GrammarKind
from deployments.contracts.tools import CallForm
from deployments.gateway.api.dependencies import IGNORED
from policies.terms import Tier
from tests.deployments.gateway.api.test_tools import ONE, TWO, pieces
from tests.deployments.openai_support import MODEL, Script

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CLOCK: Any = {"type": "function", "name": "clock", "parameters": None, "strict": None}
SAID = [
    "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    "response.output_text.delta", "response.output_text.delta", "response.output_text.done",
    "response.content_part.done", "response.output_item.done", "response.completed",
]  # fmt: skip
CALLED = [
    "response.output_item.added", "response.function_call_arguments.delta", "response.function_call_arguments.done",
    "response.output_item.done",
]  # fmt: skip


@pytest.fixture
def script(script: Script) -> Script:
    script.model = MODEL.model_copy(update={"tools": CallForm.HERMES})
    return script


async def _post(client: openai.AsyncOpenAI, body: dict[str, Any]) -> Any:
    return await client._client.post("http://gateway/v1/responses", json={"model": "text", "input": "Hi", **body})


async def _streamed(client: openai.AsyncOpenAI, **fields: Any) -> list[Any]:
    """The events of a stream, each as its own type has it."""
    answer = await _post(client, {"stream": True, **fields})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in answer.text.strip().split("\n\n"):
        name, data = (line.partition(": ")[2] for line in block.split("\n"))
        event = json.loads(data)
        assert event["type"] == name
        events.append(EVENTS.validate_python(event))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


async def test_a_response_is_what_openais_type_says(client: openai.AsyncOpenAI, script: Script) -> None:
    answer = (await _post(client, {"metadata": {"a": "b"}, "instructions": "Be brief.", "temperature": 0.5})).json()
    told = Response.model_validate(answer)
    assert (told.output_text, told.status, told.object) == ("Hello 0", "completed", "response")
    assert (told.metadata, told.instructions, told.temperature) == ({"a": "b"}, "Be brief.", 0.5)
    assert told.usage is not None and answer["store"] is False
    assert (told.usage.input_tokens, told.usage.output_tokens, told.usage.total_tokens) == (7, 3, 10)
    assert script.settled == {"tokens_in": 7, "tokens_out": 3} and script.released == 1
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert script.encoded[-1] == own and script.asked[-1][1]["temperature"] == 0.5


async def test_the_client_creates_and_streams_the_same(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.create(model="text", input="Hi")
    async with client.responses.stream(model="text", input="Hi") as stream:
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert "".join(deltas) == final.output_text == answer.output_text == "Hello 0"
    assert final.usage == answer.usage


async def test_a_stream_has_openais_sequence_of_events(client: openai.AsyncOpenAI) -> None:
    events = await _streamed(client)
    assert [event.type for event in events] == SAID
    created, done = events[0].response, events[-1].response
    assert (created.status, created.output, created.usage) == ("in_progress", [], None)
    assert created.id == done.id and done.output_text == "Hello 0"
    assert events[2].item.content == [] and events[2].item.status == "in_progress"
    assert events[-2].item == done.output[0] and {event.item_id for event in events[3:8]} == {done.output[0].id}


async def test_what_was_too_long_is_incomplete(client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    async def cut(*_: Any) -> Any:
        yield TextDelta("Hello", 2, "length", 7, 2)

    monkeypatch.setattr(Script, "stream", cut)
    answer = await client.responses.create(model="text", input="Hi", max_output_tokens=2)
    assert answer.status == "incomplete" and answer.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert answer.incomplete_details is not None and answer.incomplete_details.reason == "max_output_tokens"
    events = await _streamed(client, max_output_tokens=2)
    assert events[-1].type == "response.incomplete" and events[-1].response.output_text == "Hello"


async def test_an_error_after_the_first_event_is_the_last_one(client: openai.AsyncOpenAI, script: Script) -> None:
    script.fails = True
    events = await _streamed(client)
    assert events[-1].type == "response.failed" and events[-1].response.status == "failed"
    assert events[-1].response.error.code == "server_error" and "has stopped" in events[-1].response.error.message
    with pytest.raises(openai.InternalServerError):
        await client.responses.create(model="text", input="Hi")
    assert script.released == 2 and len(script.broken) == 2


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_calls_are_items_whole_and_streamed(client: openai.AsyncOpenAI, script: Script, size: int) -> None:
    script.said = pieces(f"I look.\n{TWO}", size)
    answer = await client.responses.create(model="text", input="Hi", tools=[WEATHER, CLOCK])
    calls = [item for item in answer.output if item.type == "function_call"]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("weather", {"city": "Köln"}), ("clock", {})]
    assert answer.output_text.strip() == "I look." and answer.output[0].type == "message"
    events = await _streamed(client, tools=[WEATHER, CLOCK])
    assert [event.type for event in events[-9:]] == [*CALLED, *CALLED, "response.completed"]
    assert [event.output_index for event in events[-9:-1]] == [1] * 4 + [2] * 4
    script.said = [ONE]
    assert [item.type for item in (await client.responses.create(model="text", input="", tools=[WEATHER])).output] == [
        "function_call"
    ]


async def test_an_agents_second_step_brings_the_first(client: openai.AsyncOpenAI, script: Script) -> None:
    """As OpenAI's guide has it: what was answered, as it came, and the outputs of its calls behind it."""
    script.said = [f"I look.\n{ONE}"]
    asked: list[Any] = [{"role": "developer", "content": "Help."}, {"role": "user", "content": "Weather?"}]
    first = await client.responses.create(model="text", input=asked, tools=[WEATHER])
    call = first.output[-1]
    assert call.type == "function_call"
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    script.said = ["It rains."]
    second = await client.responses.create(model="text", input=[*asked, *first.output, output], tools=[WEATHER])
    assert second.output_text == "It rains."
    tools, *turns = script.encoded[-1]
    called = {"id": call.call_id, "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
    assert json.loads(tools["content"])[0]["function"]["name"] == "weather"
    assert turns == [
        {"role": "system", "content": "Help."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [called]},
        {"role": "tool", "content": "rain", "tool_call_id": call.call_id},
    ]


async def test_what_has_to_be_called_is_a_grammar(client: openai.AsyncOpenAI, script: Script) -> None:
    both = [WEATHER, CLOCK]
    for choice, names in (
        ("required", {"weather", "clock"}),
        ({"type": "function", "name": "clock"}, {"clock"}),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
         {"weather"}),
    ):  # fmt: skip
        await _post(client, {"tools": both, "tool_choice": choice})
        grammar = script.asked[-1][1]["grammar"]
        assert (grammar.kind, grammar.param) == (GrammarKind.LARK, "tool_choice")
        assert {name for name in ("weather", "clock") if name in grammar.text} == names
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "clock"}]}
    await _post(client, {"tools": both, "tool_choice": allowed})
    assert "grammar" not in script.asked[-1][1] and "weather" not in script.encoded[-1][0]["content"]
    script.tier = Tier(name="silver", utility=0.9)
    error = (await _post(client, {"tools": both, "tool_choice": "required"})).json()["error"]
    assert (error["param"], error["code"]) == ("tool_choice", "logprobs_not_entitled")


class City(BaseModel):
    name: str


async def test_the_client_parses_what_it_asked_for(client: openai.AsyncOpenAI, script: Script) -> None:
    script.said = ['{"name": ', '"Köln"}']
    parsed = await client.responses.parse(model="text", input="Hi", text_format=City)
    assert parsed.output_parsed == City(name="Köln")
    grammar = script.asked[-1][1]["grammar"]
    assert (grammar.kind, grammar.param) == (GrammarKind.SCHEMA, "text.format")
    assert json.loads(grammar.text)["properties"].keys() == {"name"}
    await client.responses.create(model="text", input="Hi", text={"format": {"type": "json_object"}})
    assert script.asked[-1][1]["grammar"].text == '{"type": "object"}'
    script.tier = Tier(name="silver", utility=0.9)
    with pytest.raises(openai.PermissionDeniedError) as error:
        await client.responses.parse(model="text", input="Hi", text_format=City)
    assert error.value.param == "text.format"


async def test_logprobs_are_told_where_they_are_included(client: openai.AsyncOpenAI, script: Script) -> None:
    asked: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part = Response.model_validate((await _post(client, asked)).json()).output[0].content[0]  # type: ignore[union-attr]
    assert [(token.token, token.logprob) for token in part.logprobs] == [("Hel", -0.5), ("lo", -0.25)]  # type: ignore[union-attr]
    assert [top.token for top in part.logprobs[0].top_logprobs] == ["Hel", "Hol"]  # type: ignore[union-attr,index]
    events = await _streamed(client, **asked)
    assert [token.token for token in events[4].logprobs] == ["Hel", "lo"]
    assert script.asked[-1][1]["logprobs"] == 2
    script.tier = Tier(name="silver", utility=0.9)
    assert (await _post(client, asked)).status_code == 403
    assert (await _post(client, {"include": ["reasoning.encrypted_content"]})).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "Nothing is stored"),
        ({"conversation": "conv_1"}, "conversation", "Nothing is stored"),
        ({"background": True}, "background", "Nothing is stored"),
        ({"prompt": {"id": "p"}}, "prompt", "No prompts are stored"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search'"),
        ({"tools": [WEATHER, {"type": "mcp", "server_label": "x"}]}, "tools[1].type", "'mcp'"),
        ({"tool_choice": {"type": "file_search"}, "tools": [WEATHER]}, "tool_choice", "allowed_tools"),
        ({"tool_choice": {"type": "function", "name": "x"}, "tools": [WEATHER]}, "tool_choice", "'x'"),
        ({"tools": [{**WEATHER, "parameters": {"not": {}}}], "tool_choice": "required"},
         "tools[0].parameters", "'not'"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "item itself"),
        ({"input": [{"id": "msg_1"}]}, "input[0]", "item itself"),
        ({"input": [{"type": "web_search_call", "id": "w"}]}, "input[0]", "'web_search_call'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "input[0].content[0].type", "'input_image'"),
        ({"input": [{"role": "user"}]}, "input[0].content", "required"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]},
         "input[0].arguments", "JSON object"),
        ({"input": [7]}, "input[0]", "object"),
        ({"input": []}, "input", ""),
        ({"input": {}}, "input", "list of items"),
        ({"input": [{"type": "reasoning", "id": "r", "summary": []}]}, "input", "no message"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema", "go together"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", ""),
        ({"max_tokens": 5}, "max_tokens", "max_output_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format", "text.format"),
        ({"top_logprobs": 2}, "top_logprobs", "include"),
        ({"temprature": 1}, "temprature", "temprature"),
    ],
)  # fmt: skip
async def test_what_is_not_served_is_refused_by_name(
    client: openai.AsyncOpenAI, script: Script, fields: dict[str, Any], param: str, said: str
) -> None:
    answer = await _post(client, fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and said in error["message"], error
    assert not script.costs


async def test_a_templates_refusal_names_the_field_it_came_in(
    client: openai.AsyncOpenAI, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    from policies.errors import InvalidRequest

    async def encode(*_: Any) -> Any:
        raise InvalidRequest("Roles must alternate.", param="messages")

    monkeypatch.setattr(script, "encode", encode)
    assert (await _post(client, {})).json()["error"]["param"] == "input"


async def test_nothing_is_stored_and_the_header_says_so(client: openai.AsyncOpenAI) -> None:
    told = await client.responses.with_raw_response.create(model="text", input="Hi", store=True)
    assert told.headers[IGNORED] == "store"
    for call in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError, match="nothing is stored"):
            await call(told.parse().id)


async def test_a_response_by_the_models_url_needs_no_model(client: openai.AsyncOpenAI) -> None:
    answer = await client._client.post("http://gateway/models/org/text/v1/responses", json={"input": "Hi"})
    assert Response.model_validate(answer.json()).model == "org/text"


async def test_terms_and_what_is_not_openais_reach_the_engine(client: openai.AsyncOpenAI, script: Script) -> None:
    extra = {"seed": 7, "stop": ["x"], "top_k": 5, "focus": {"ocean": 0.5}, "utility": 1.0}
    await client.responses.create(model="text", input="Hi", extra_body=extra, max_output_tokens=9, top_p=0.5)
    params = script.asked[-1][1]
    assert {name: params[name] for name in ("n", "max_tokens", "seed", "stop", "top_k", "top_p")} == {
        "n": 1, "max_tokens": 9, "seed": 7, "stop": ("x",), "top_k": 5, "top_p": 0.5,
    }  # fmt: skip
