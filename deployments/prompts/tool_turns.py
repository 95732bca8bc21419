"""Tools in a conversation: what a template makes of them, and turns for a template that takes none."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from deployments.contracts.tools import CallForm

Turns = list[dict[str, Any]]
OPEN, CLOSE = "<tool_call>", "</tool_call>"
_NAME, _VALUE, _RESULT = "tOoL5", "vAlUe5", "rEsUlT5"
"""Texts that no template has of its own."""
_TOLD = """You may call functions to help with the user's request. These are described, in JSON, within <tools></tools>:
<tools>
{tools}
</tools>

To call a function, answer with its name and arguments as JSON within <tool_call></tool_call>:
<tool_call>
{{"name": "function", "arguments": {{"argument": "value"}}}}
</tool_call>"""


def form_of_calls(render: Callable[[Turns, Any], str]) -> CallForm | None:
    """How a template has its model call tools; None where it takes none, or writes calls in some other way.

    Args:
        render: fills the template with turns and tools.
    """
    function = {"name": _NAME, "description": "", "parameters": {"type": "object", "properties": {}}}
    call = {"type": "function", "id": "a1b2c3d4e", "function": {"name": _NAME, "arguments": {_VALUE: _VALUE}}}
    turns: Turns = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": _RESULT, "name": _NAME, "tool_call_id": "a1b2c3d4e"},
    ]
    try:
        offered = render(turns[:1], [{"type": "function", "function": function}])
        called = render(turns, [{"type": "function", "function": function}])
    except Exception:  # whatever a template does
        return None
    own = called[called.find("?") :]
    if _NAME not in offered or _RESULT not in called or _VALUE not in own:
        return None
    if OPEN in own and '"arguments"' in own:
        return CallForm.HERMES
    return CallForm.LLAMA if '"parameters"' in own and OPEN not in called else None


def told(turns: Turns, tools: Sequence[Any]) -> Turns:
    """A conversation with tools in turns that every template takes."""
    made = [_plain(turn) for turn in turns]
    if not tools:
        return made
    said = _TOLD.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if made and made[0]["role"] == "system":
        return [{**made[0], "content": f"{made[0]['content']}\n\n{said}"}, *made[1:]]
    return [{"role": "system", "content": said}, *made]


def _plain(turn: dict[str, Any]) -> dict[str, Any]:
    if turn["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}
    calls = [
        f"{OPEN}\n{json.dumps(call['function'], ensure_ascii=False)}\n{CLOSE}" for call in turn.get("tool_calls", [])
    ]
    return {"role": turn["role"], "content": "\n".join([*([turn["content"]] if turn["content"] else []), *calls])}
