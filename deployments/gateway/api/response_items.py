"""What a response is made from: the items of `input`, as turns that a model's template knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from deployments.gateway.api import parameters
from deployments.gateway.api.messages import MOST_PARTS, CalledFunction, mended
from deployments.gateway.api.schemas import StrictModel, short
from deployments.gateway.api.tolerance import Unserved
from deployments.prompts.tool_turns import Turns

_TEXTS = ("input_text", "output_text", "text")
_ROLES = {"developer": "system"}
"""OpenAI's newer name of a role, which chat templates do not know."""


def _only_text(kind: Any) -> Any:
    if isinstance(kind, str) and kind not in _TEXTS:
        raise ValueError(f"only parts of type 'input_text' and 'output_text' are read, not '{kind[:40]}'")
    return kind


class ItemText(StrictModel):
    """One text part of an item."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.ITEM_TEXT
    where: ClassVar[str] = "input[].content[]."

    type: Annotated[Literal["input_text", "output_text", "text"], BeforeValidator(_only_text)] = Field(
        description="Only text parts are read."
    )
    text: str = Field(description="The text.")


def _as_parts(content: Any) -> Any:
    """A text is its only part: a union's own errors would name its branches, not what to send."""
    if isinstance(content, str):
        return [ItemText.model_construct(type="text", text=content)]
    if isinstance(content, list):
        return content
    raise ValueError("send a text, or a list of text parts")


_TEXT_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": ItemText.model_json_schema()}]}
ItemTexts = Annotated[
    list[ItemText],
    Field(fail_fast=True),
    short(MOST_PARTS),
    BeforeValidator(_as_parts),
    WithJsonSchema(_TEXT_SCHEMA),
]


def _said(parts: Sequence[ItemText]) -> str:
    return mended("".join(part.text for part in parts))


class MessageItem(StrictModel):
    """A message."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.ITEM_MESSAGE
    where: ClassVar[str] = "input[]."

    type: Literal["message"] = Field(default="message", description="A message, which is what an item is by itself.")
    role: Literal["user", "assistant", "system", "developer"] = Field(description="Who speaks.")
    content: ItemTexts = Field(description="What is said: text, or a list of text parts.")

    def add_to(self, turns: Turns) -> None:
        """Put it behind the turns before it."""
        turns.append({"role": _ROLES.get(self.role, self.role), "content": _said(self.content)})


class CallItem(StrictModel):
    """A function that the model called."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.ITEM_CALL
    where: ClassVar[str] = "input[]."

    type: Literal["function_call"] = Field(description="Functions are served.")
    call_id: str = Field(description="By which its output names it.")
    name: str = Field(description="Its name.")
    arguments: str = Field(description="Its arguments: an object, in JSON.")

    @field_validator("arguments")
    @classmethod
    def _object(cls, arguments: str) -> str:
        CalledFunction.read(arguments)
        return arguments

    def add_to(self, turns: Turns) -> None:
        """Put it behind the turns before it: calls that follow an assistant's words are in the same turn."""
        if not turns or turns[-1]["role"] != "assistant":
            turns.append({"role": "assistant", "content": ""})
        function = {"name": self.name, "arguments": CalledFunction.read(self.arguments)}
        turns[-1].setdefault("tool_calls", []).append({"id": self.call_id, "type": "function", "function": function})


class OutputItem(StrictModel):
    """What a function answered."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.ITEM_OUTPUT
    where: ClassVar[str] = "input[]."

    type: Literal["function_call_output"] = Field(description="Functions are served.")
    call_id: str = Field(description="The call that it answers.")
    output: ItemTexts = Field(description="What it answered: text, or a list of text parts.")

    def add_to(self, turns: Turns) -> None:
        """Put it behind the turns before it."""
        turns.append({"role": "tool", "content": _said(self.output), "tool_call_id": self.call_id})


class ReasoningItem(StrictModel):
    """What another model thought, which no template here is told."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.ITEM_REASONING
    where: ClassVar[str] = "input[]."

    type: Literal["reasoning"] = Field(description="Taken, and not told to the model.")

    def add_to(self, turns: Turns) -> None:
        """Nothing: it is left out."""


Item = MessageItem | CallItem | OutputItem | ReasoningItem
KINDS: Mapping[str, type[Item]] = {
    "message": MessageItem,
    "function_call": CallItem,
    "function_call_output": OutputItem,
    "reasoning": ReasoningItem,
}


def _read(item: Any) -> Any:
    """An item by its type: a union's own errors would name all of its branches."""
    if isinstance(item, Item):
        return item
    if not isinstance(item, dict):
        raise ValueError("send an object: a message, a function_call or a function_call_output")
    kind = item.get("type") or ("item_reference" if item.keys() <= {"id", "type"} else "message")
    if kind == "item_reference":
        raise ValueError("nothing is stored here that an item_reference could name; send the item itself")
    if kind not in KINDS:
        raise ValueError(f"items of type '{str(kind)[:40]}' are not read; send {', '.join(KINDS)}")
    return KINDS[kind].model_validate(item)


InputItem = Annotated[Item, BeforeValidator(_read)]


def turns_of(items: Sequence[Item], instructions: str | None) -> Turns:
    """A conversation as chat templates have it; instructions are its first turn."""
    turns: Turns = [{"role": "system", "content": mended(instructions)}] if instructions else []
    for item in items:
        item.add_to(turns)
    return turns
