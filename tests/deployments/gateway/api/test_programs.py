"""Whole bodies that programs send, answered."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from deployments.config import GatewayArgs
from deployments.contracts.tools import CallForm
from deployments.gateway.api.dependencies import IGNORED
from deployments.gateway.settings import Settings
from tests.deployments.openai_support import MODEL, QUESTION, Script

OPEN_WEBUI_TOOLS: list[Any] = [
    {"type": "function", "function": spec} for spec in (
        {
            "name": "search_web",
            "description": "Search the public web for information.",
            "parameters": {"type": "object", "required": ["query"], "properties": {
                "query": {"description": "The search query to look up", "type": "string"},
                "count": {"description": "Number of results to return", "type": "integer"},
            }},
        },
        {"name": "get_current_timestamp", "description": "Now.", "parameters": {"properties": {}, "type": "object"}},
        {"name": "calculate_timestamp", "description": "", "parameters": {"type": "object", "properties": {
            "days_ago": {"default": 0, "description": "Number of days", "type": "integer"},
        }}},
        # As versions before `clean_openai_tool_schema` have it.
        {"name": "older", "description": "", "parameters": {"type": "object", "properties": {
            "count": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "description": "Number"},
        }}},
    )
]  # fmt: skip
# What other programs were seen to send, or send by their source: guidellm, `vllm bench serve`, editors for completion.
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "guidellm": ("chat", {
        "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "max_tokens": 16, "max_completion_tokens": 16, "ignore_eos": True, "stop": None,
    }),
    "vllm bench serve": ("completions", {
        "temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": 8, "logprobs": None, "stream": True,
        "stream_options": {"include_usage": True}, "ignore_eos": True, "min_tokens": 8, "top_k": -1, "min_p": 0,
    }),
    "an editor": ("completions", {
        "max_tokens": 4096, "suffix": "", "echo": False, "best_of": 1, "stop": [f"</{i}>" for i in range(10)],
        "temperature": 0.2, "top_p": 0,
    }),
    # Open WebUI by its source (routers/openai.py, utils/middleware.py, utils/tools.py, tools/builtin.py): `metadata` is
    # taken out and the newer name of max_tokens renamed before the request; function calling is native by default, with
    # a tool for each of its own functions, by langchain's conversion of their signatures, and no tool_choice; the next
    # request repeats the tools with the calls and their answers.
    "Open WebUI": ("chat", {
        "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.7, "max_tokens": 512,
        "reasoning_effort": "medium", "seed": 0, "stop": ["###"],
    }),
    "Open WebUI's native function calling": ("chat", {
        "stream": True, "stream_options": {"include_usage": True}, "tools": OPEN_WEBUI_TOOLS,
    }),
    "Open WebUI after a call": ("chat", {
        "stream": True, "tools": OPEN_WEBUI_TOOLS, "messages": [
            *QUESTION,
            {"role": "assistant", "content": "", "reasoning_content": "Look.", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "search_web", "arguments": '{"query": "a"}'}},
                {"id": "c2", "type": "function", "function": {"name": "get_current_timestamp", "arguments": "{}"}},
            ]},
            {"role": "tool", "tool_call_id": "c1", "content": "[]"},
            {"role": "tool", "tool_call_id": "c2", "content": ""},
        ],
    }),
    "an agent": ("chat", {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": "none",
        "parallel_tool_calls": True, "logprobs": False, "top_logprobs": 0, "modalities": ["text"],
        "prompt_cache_key": "k", "safety_identifier": "s", "verbosity": "low", "user": "u",
    }),
    "a front end of llama.cpp": ("chat", {
        "cache_prompt": True, "samplers": None, "mirostat": 0, "typical_p": 1, "repeat_penalty": 1, "repeat_last_n": 64,
        "dry_multiplier": 0, "dry_base": 1.75, "xtc_probability": 0, "grammar": "", "timings_per_token": False,
        "reasoning_format": "none", "n_probs": 0,
    }),
}  # fmt: skip


@pytest.mark.parametrize("who", BODIES)
async def test_what_programs_send_is_answered(client: openai.AsyncOpenAI, script: Script, who: str) -> None:
    path, fields = BODIES[who]
    url = f"http://gateway/v1/{'chat/completions' if path == 'chat' else path}"
    asked = {"model": "text"} | ({"messages": QUESTION} if path == "chat" else {"prompt": "a"})
    script.model = MODEL.model_copy(update={"tools": CallForm.HERMES})
    answer = await client._client.post(url, json={**asked, **fields})
    assert answer.status_code == 200, answer.text
    script.settings = Settings(GatewayArgs(strict=True))
    strict = await client._client.post(url, json={**asked, **fields})
    assert strict.status_code == (400 if answer.headers.get(IGNORED) or who == "guidellm" else 200), strict.text
