"""The table of parameters against OpenAI's own types and over HTTP: each is served, without effect, or refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import openai
import pytest
from openai.types import chat, completion_create_params, embedding_create_params, responses
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params, response_includable, response_input_item_param
from pydantic import BaseModel

from deployments.config import REPOSITORY, GatewayArgs
from deployments.gateway.api import (
    embeddings,
    image_requests,
    parameters,
    response_items,
    response_schemas,
    text_schemas,
)
from deployments.gateway.api.dependencies import IGNORED
from deployments.gateway.api.messages import ChatMessage, TextPart
from deployments.gateway.api.parameter_docs import marked, page
from deployments.gateway.api.schemas import StrictModel
from deployments.gateway.api.tolerance import Unserved
from deployments.gateway.settings import Settings
from tests.deployments.openai_support import QUESTION, Script

OPENAI: list[tuple[Any, type[StrictModel]]] = [
    (chat_create_params.CompletionCreateParamsNonStreaming, text_schemas.ChatRequest),
    (chat_create_params.CompletionCreateParamsStreaming, text_schemas.ChatRequest),
    (completion_create_params.CompletionCreateParamsNonStreaming, text_schemas.CompletionRequest),
    (completion_create_params.CompletionCreateParamsStreaming, text_schemas.CompletionRequest),
    (chat.ChatCompletionStreamOptionsParam, text_schemas.StreamOptions),
    (chat.ChatCompletionContentPartTextParam, TextPart),
    *((message, ChatMessage) for message in get_args(chat.ChatCompletionMessageParam)),
    (response_create_params.ResponseCreateParamsNonStreaming, response_schemas.ResponseRequest),
    (response_create_params.ResponseCreateParamsStreaming, response_schemas.ResponseRequest),
    (response_create_params.StreamOptions, response_schemas.ResponseStreamOptions),
    (responses.ResponseTextConfigParam, response_schemas.TextOptions),
    (responses.ResponseFormatTextJSONSchemaConfigParam, response_schemas.Format),
    (responses.FunctionToolParam, response_schemas.FunctionTool),
    (responses.ToolChoiceFunctionParam, response_schemas.NamedChoice),
    (responses.ToolChoiceAllowedParam, response_schemas.AllowedChoice),
    (responses.EasyInputMessageParam, response_items.MessageItem),
    (response_input_item_param.Message, response_items.MessageItem),
    (responses.ResponseOutputMessageParam, response_items.MessageItem),
    (responses.ResponseFunctionToolCallParam, response_items.CallItem),
    (response_input_item_param.FunctionCallOutput, response_items.OutputItem),
    (responses.ResponseReasoningItemParam, response_items.ReasoningItem),
    (responses.ResponseInputTextParam, response_items.ItemText),
    (responses.ResponseOutputTextParam, response_items.ItemText),
    (embedding_create_params.EmbeddingCreateParams, embeddings.EmbeddingRequest),
]
ROLES = {"developer", "system", "user", "assistant", "tool", "function"}
PARTS = {"text", "image_url", "input_audio", "file", "refusal"}
"""Of a chat: all but texts are refused by their type."""
FORMATS = {"text", "json_object", "json_schema"}
UNKNOWN = {"": "a value that nobody has thought of"}
TABLES = {"chat": parameters.CHAT, "completions": parameters.COMPLETION, "responses": parameters.RESPONSE,
          "embeddings": parameters.EMBEDDING}  # fmt: skip
REQUESTS: dict[str, dict[str, Any]] = {
    "chat": {"messages": QUESTION}, "completions": {"prompt": "a"}, "responses": {"input": "a"},
    "embeddings": {"input": "a", "model": "embed"},
}  # fmt: skip
ITEMS = {"message", "function_call", "function_call_output", "reasoning"}
REFUSED_ITEMS = {
    *("additional_tools", "apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction"),
    *(
        "compaction_trigger",
        "configuration_update",
        "computer_call",
        "computer_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
    ),
    *("file_search_call", "image_generation_call", "item_reference", "local_shell_call", "local_shell_call_output"),
    *("mcp_approval_request", "mcp_approval_response", "mcp_call", "mcp_list_tools", "program", "program_output"),
    *("shell_call", "shell_call_output", "tool_search_call", "tool_search_output", "web_search_call"),
}
HOSTED = {
    *("apply_patch", "code_interpreter", "computer", "computer_use_preview", "custom", "file_search"),
    *("image_generation", "local_shell", "mcp", "namespace", "programmatic_tool_calling", "shell", "tool_search"),
    *("web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11"),
}
WITHOUT_EFFECT = [
    (path, name, value)
    for path, table in TABLES.items()
    for name, known in table.items()
    for value in ([True, 0, "x", UNKNOWN] if known.nothing is None else known.nothing)
]
REFUSED = [(path, name) for path, table in TABLES.items() for name, known in table.items() if known.nothing is not None]


def _literal(of: Any, field: str) -> set[str]:
    hint = get_type_hints(of)[field]
    literals = [hint, *get_args(hint)]  # an optional one is in a union
    return {value for literal in literals for value in get_args(literal) if isinstance(value, str)}


@pytest.mark.parametrize(("theirs", "ours"), OPENAI, ids=lambda kind: kind.__name__)
def test_every_field_of_openais_has_a_treatment(theirs: Any, ours: type[StrictModel]) -> None:
    known = {field.alias or name for name, field in ours.model_fields.items()} | ours.unserved.keys()
    assert theirs.__annotations__.keys() <= known, "OpenAI has a new field: serve it, or put it into the table"


def test_openai_has_no_role_part_or_format_that_is_not_known() -> None:
    messages = get_args(chat.ChatCompletionMessageParam)
    assert set().union(*(_literal(message, "role") for message in messages)) == ROLES
    parts = {*get_args(chat.ChatCompletionContentPartParam), chat.ChatCompletionContentPartRefusalParam}
    assert set().union(*(_literal(part, "type") for part in parts)) == PARTS
    assert set().union(*(_literal(one, "type") for one in get_args(chat_create_params.ResponseFormat))) == FORMATS


def test_openai_has_no_item_tool_or_include_that_is_not_known() -> None:
    kinds = set().union(*(_literal(one, "type") for one in get_args(responses.ResponseInputItemParam)))
    assert kinds == ITEMS | REFUSED_ITEMS and response_items.KINDS.keys() == ITEMS
    assert set().union(*(_literal(tool, "type") for tool in get_args(responses.ToolParam))) == HOSTED | {"function"}
    formats = get_args(responses.ResponseFormatTextConfigParam)
    assert set().union(*(_literal(one, "type") for one in formats)) == FORMATS
    assert set(get_args(response_includable.ResponseIncludable)) == set(get_args(response_schemas.Includable))


async def test_what_runs_at_openais_is_refused_by_its_name(client: openai.AsyncOpenAI, script: Script) -> None:
    for kind in sorted(HOSTED):
        error = (await _post(client, "responses", {"tools": [{"type": kind}]})).json()["error"]
        assert error["param"] == "tools[0].type" and f"'{kind}'" in error["message"]
    for kind in sorted(REFUSED_ITEMS):
        error = (await _post(client, "responses", {"input": [{"type": kind, "id": "x"}]})).json()["error"]
        assert error["param"] == "input[0]" and kind in error["message"]


@pytest.mark.parametrize(
    "model",
    {ours for _, ours in OPENAI} | {image_requests.ImageParameters, image_requests.ImageRequest},
    ids=lambda model: model.__name__,
)
def test_nothing_that_is_served_stands_in_the_table_as_well(model: type[StrictModel]) -> None:
    assert not model.model_fields.keys() & model.unserved.keys()


def test_the_page_shows_the_table() -> None:
    """`python -m deployments.gateway.api.parameter_docs` writes it."""
    assert marked(page().read_text(encoding="utf-8")) == page().read_text(encoding="utf-8")


async def _post(client: openai.AsyncOpenAI, path: str, fields: Mapping[str, Any]) -> Any:
    url = f"http://gateway/v1/{'chat/completions' if path == 'chat' else path}"
    return await client._client.post(url, json={"model": "text", **REQUESTS[path], **fields})


async def test_what_asks_for_nothing_is_accepted_and_named_and_refused_where_that_is_strict(
    client: openai.AsyncOpenAI, script: Script
) -> None:
    for path, name, value in WITHOUT_EFFECT:
        answer = await _post(client, path, {name: value})
        assert (answer.status_code, answer.headers.get(IGNORED)) == (200, name), (path, name, value, answer.text)
    script.settings.change({"strict": True, "bad_requests_per_s": 1e4})  # in place: the intake counts by them, too
    for path, name, value in WITHOUT_EFFECT:
        answer = await _post(client, path, {name: value})
        assert answer.status_code == (200 if TABLES[path][name].in_strict else 400), (path, name, value)
        if answer.status_code == 400:
            assert answer.json()["error"]["param"] == name


async def test_what_asks_for_something_is_refused_by_name(client: openai.AsyncOpenAI, script: Script) -> None:
    for path, name in REFUSED:
        error = (await _post(client, path, {name: UNKNOWN})).json()["error"]
        assert (error["param"], error["code"]) == (name, "unsupported_parameter"), (path, name)
        assert f"'{name}'" in error["message"]
        assert (await _post(client, path, {name: None})).status_code == 200, "null is a field that is not set"
    unknown = (await _post(client, "chat", {"temprature": 1})).json()["error"]
    assert (unknown["param"], unknown["code"]) == ("temprature", "unsupported_parameter")


MESSAGE_VALUES = [
    (name, value)
    for name, known in parameters.MESSAGE.items()
    for value in ([UNKNOWN, "x"] if known.nothing is None else known.nothing)
]


@pytest.mark.parametrize(("name", "value"), MESSAGE_VALUES, ids=repr)
async def test_a_turn_as_clients_keep_it_is_taken(
    client: openai.AsyncOpenAI, script: Script, name: str, value: Any
) -> None:
    turns = [*QUESTION, {"role": "assistant", "content": "Hello", name: value}, *QUESTION]
    answer = await _post(client, "chat", {"messages": turns})
    assert answer.status_code == 200 and answer.headers[IGNORED] == f"messages[].{name}"
    script.settings = Settings(GatewayArgs(strict=True))
    strict = await _post(client, "chat", {"messages": turns})
    assert strict.status_code == (200 if parameters.MESSAGE[name].in_strict else 400)


async def test_the_clients_own_answer_is_taken_as_a_turn(client: openai.AsyncOpenAI, script: Script) -> None:
    """What `openai` makes of an answer, with its nulls and its empty lists."""
    answer = await client.chat.completions.create(model="text", messages=QUESTION)
    turns: Any = [*QUESTION, answer.choices[0].message.model_dump(), {"role": "assistant", "content": None}, *QUESTION]
    await client.chat.completions.create(model="text", messages=turns)
    assert [turn["content"] for turn in script.encoded[-1]] == ["Hi", "Hello 0", "", "Hi"]
    parts: Any = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]
    told = await client.chat.completions.with_raw_response.create(
        model="text", messages=[{"role": "user", "content": parts}]
    )
    assert script.encoded[-1][0]["content"] == "ab" and told.headers[IGNORED] == "messages[].content[].cache_control"


async def test_the_real_client_sends_all_of_openais_options(client: openai.AsyncOpenAI) -> None:
    told = await client.chat.completions.with_raw_response.create(
        model="text",
        messages=QUESTION,
        max_tokens=5,
        max_completion_tokens=5,
        metadata={"a": "b"},
        modalities=["text"],
        n=1,
        parallel_tool_calls=True,
        prediction={"type": "content", "content": "Hello"},
        prompt_cache_key="k",
        reasoning_effort="low",
        safety_identifier="s",
        service_tier="auto",
        store=True,
        tool_choice="auto",
        tools=[],
        verbosity="low",
        user="u",
    )
    assert set(re.split(", ", told.headers[IGNORED])) == {
        *("metadata", "modalities", "prediction", "prompt_cache_key", "reasoning_effort"),
        *("safety_identifier", "service_tier", "store", "verbosity", "user"),
    }
    assert told.parse().choices[0].message.content == "Hello 0"


async def test_usage_comes_in_every_chunk_where_that_is_asked_for(client: openai.AsyncOpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = await client.chat.completions.create(model="text", messages=QUESTION, stream=True, stream_options=options)
    told = [chunk.usage.completion_tokens async for chunk in stream if chunk.usage]
    assert told == [2, 2, 3, 3, 3]


def test_the_table_is_made_of_known_treatments() -> None:
    others = (parameters.MESSAGE, parameters.IMAGE_PARAMETERS, parameters.FUNCTION_TOOL, parameters.ITEM_CALL)
    for table in (*TABLES.values(), *others):
        assert all(isinstance(known, Unserved) and known.instead.endswith(".") for known in table.values())
    assert issubclass(ChatMessage, BaseModel) and (REPOSITORY / "docs").exists()
