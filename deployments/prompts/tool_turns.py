"""Tools in a conversation: what a template makes of them, and turns for a template that takes none."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.contracts.tools import CallForm

Turns = list[dict[str, Any]]
OPEN, CLOSE = "<tool_call>", "</tool_call>"
_ASKED, _NAME, _VALUE, _RESULT = "aSkEd5", "tOoL5", "vAlUe5", "rEsUlT5"
"""Texts that no template has of its own."""
_TOLD = """You may call functions to help with the user's request. These are described, in JSON, within <tools></tools>:
<tools>
{tools}
</tools>

To call a function, answer with its name and arguments as JSON within <tool_call></tool_call>:
<tool_call>
{{"name": "function", "arguments": {{"argument": "value"}}}}
</tool_call>"""


@dataclass(frozen=True)
class Manner:
    """How a template has its model call tools.

    Attributes:
        form: what a call looks like.
        written: whether the template writes the calls of a turn. SmolLM3's tells of tools, and leaves calls out.
    """

    form: CallForm
    written: bool = True


def manner_of(render: Callable[[Turns, Any], str]) -> Manner | None:
    """How a template has its model call tools; None where it takes none, or writes calls in some other way.

    Args:
        render: fills the template with turns and tools, ready for an answer.
    """
    function = {"name": _NAME, "description": "", "parameters": {"type": "object", "properties": {}}}
    call = {"type": "function", "id": "a1b2c3d4e", "function": {"name": _NAME, "arguments": {_VALUE: _VALUE}}}
    turns: Turns = [
        {"role": "user", "content": _ASKED},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": _RESULT, "name": _NAME, "tool_call_id": "a1b2c3d4e"},
    ]
    try:
        offered = render(turns[:1], [{"type": "function", "function": function}])
        called = render(turns, [{"type": "function", "function": function}])
    except Exception:  # whatever a template does
        return None
    if _NAME not in offered or _RESULT not in called:
        return None
    begin, own = offered.partition(_ASKED)[2], called.partition(_ASKED)[2]
    if _is_call(own.partition(OPEN)[2], "arguments"):
        return Manner(CallForm.HERMES)
    if _VALUE not in called and OPEN in offered and '"arguments"' in offered:
        return Manner(CallForm.HERMES, written=False)
    # A call is all of a Llama's answer: other families have the same words in a list, or behind a mark of their own.
    return Manner(CallForm.LLAMA) if own.startswith(begin) and _is_call(own[len(begin) :], "parameters") else None


def _is_call(text: str, arguments: str) -> bool:
    """Whether a text begins with the call that was asked for, its arguments under this name."""
    try:
        value, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("name") == _NAME and value.get(arguments) == {_VALUE: _VALUE}


def one_by_one(turns: Turns) -> Turns:
    """Several calls of a turn in turns of their own, each before its answer: some templates take one at a time."""
    made, waiting = Turns(), Turns()
    for turn in turns:
        if turn["role"] == "tool" and waiting:
            of = [at for at, one in enumerate(waiting) if one["tool_calls"][0].get("id") == turn.get("tool_call_id")]
            made.append(waiting.pop(of[0] if of else 0))
        elif turn["role"] != "tool":
            made, waiting = made + waiting, []
        calls = turn.get("tool_calls") or []
        if len(calls) > 1:
            waiting = [{**turn, "content": "", "tool_calls": [call]} for call in calls]
            waiting[0]["content"] = turn["content"]
        else:
            made.append(turn)
    return made + waiting


def told(turns: Turns, tools: Sequence[Any]) -> Turns:
    """A conversation with tools in turns that every template takes."""
    made = [
        {"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}
        if turn["role"] == "tool"
        else turn
        for turn in in_words(turns)
    ]
    if not tools:
        return made
    said = _TOLD.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if made and made[0]["role"] == "system":
        return [{**made[0], "content": f"{made[0]['content']}\n\n{said}"}, *made[1:]]
    return [{"role": "system", "content": said}, *made]


def in_words(turns: Turns) -> Turns:
    """A conversation with its calls in what the assistant says."""
    return [{"role": turn["role"], "content": _said(turn)} if turn.get("tool_calls") else turn for turn in turns]


def _said(turn: dict[str, Any]) -> str:
    return "\n".join([*filter(None, [turn["content"]]), *map(_call, turn["tool_calls"])])


def _call(call: dict[str, Any]) -> str:
    return f"{OPEN}\n{json.dumps(call['function'], ensure_ascii=False)}\n{CLOSE}"
