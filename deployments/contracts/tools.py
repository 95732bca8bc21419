"""How a model is told of tools, and how it calls them."""

from __future__ import annotations

from enum import StrEnum


class CallForm(StrEnum):
    """What a call looks like in a model's answer."""

    HERMES = "hermes"
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of them: Hermes, Qwen, SmolLM3."""
    LLAMA = "llama"
    """The whole answer is `{"name": ..., "parameters": {...}}`: Llama 3.1 and newer."""
    TOLD = "told"
    """As `HERMES`, by a model whose template takes no tools: the system's turn tells them, as SmolLM2's makers do."""


TOOLS_ROLE = "tools"
"""Of a conversation's first turn where it has tools: `content` is their list in JSON, `form` the `CallForm`."""
