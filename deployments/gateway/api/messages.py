"""The turns of a conversation as OpenAI's clients send them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator
from pydantic_core import InitErrorDetails, ValidationError

from deployments.gateway.api import parameters
from deployments.gateway.api.schemas import StrictModel, short
from deployments.gateway.api.tolerance import Unserved, is_strict

MOST_PARTS = 1024
_ROLES = {"developer": "system"}
"""OpenAI's newer name of a role, which chat templates do not know."""


def _only_text(kind: Any) -> Any:
    if isinstance(kind, str) and kind != "text":
        raise ValueError(f"only parts of type 'text' are read, not '{kind[:40]}'")
    return kind


class TextPart(StrictModel):
    """One text part of a message's content."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.TEXT_PART
    where: ClassVar[str] = "messages[].content[]."

    type: Annotated[Literal["text"], BeforeValidator(_only_text)] = Field(description="Only text parts are read.")
    text: str = Field(description="The text.")


def _as_parts(content: Any) -> Any:
    """A text is its only part: a union's own errors would name its branches, not what to send."""
    if isinstance(content, str):
        return [TextPart.model_construct(type="text", text=content)]
    if isinstance(content, list):
        return content
    raise ValueError("send a text, or a list of text parts")


_CONTENT_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": TextPart.model_json_schema()}]}


class CalledFunction(StrictModel):
    """A function that was called."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.CALLED_FUNCTION
    where: ClassVar[str] = "messages[].tool_calls[].function."

    name: str = Field(description="Its name.")
    arguments: str | dict[str, Any] = Field(description="Its arguments: an object, in JSON.")

    @field_validator("arguments", mode="before")
    @classmethod
    def read(cls, arguments: Any) -> dict[str, Any]:
        """Arguments as an object. Raises ValueError where they are none."""
        try:
            read = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError):
            read = None
        if not isinstance(read, dict):
            raise ValueError("send a JSON object, as text")
        return read


class CalledTool(StrictModel):
    """A call in an assistant's turn."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.CALLED_TOOL
    where: ClassVar[str] = "messages[].tool_calls[]."

    id: str = Field(default="", description="By which a tool's turn names it.")
    type: Literal["function"] = Field(default="function", description="Functions are served.")
    function: CalledFunction = Field(description="What was called.")


class ChatMessage(StrictModel):
    """One turn of a conversation."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.MESSAGE
    where: ClassVar[str] = "messages[]."

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description="Who speaks.")
    content: Annotated[
        list[TextPart],
        Field(fail_fast=True),
        short(MOST_PARTS),
        BeforeValidator(_as_parts),
        WithJsonSchema(_CONTENT_SCHEMA),
    ] = Field(default_factory=list, description="What is said: text, or a list of text parts.")

    tool_calls: Annotated[list[CalledTool], short(MOST_PARTS)] = Field(
        default_factory=list, description="Of an assistant's turn: the functions that it called."
    )
    tool_call_id: str | None = Field(default=None, description="Of a tool's turn: the call that it answers.")

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        silent = "content" not in self.model_fields_set
        # An assistant's turn may be without words, as clients send one of tool calls.
        if silent and (self.role != "assistant" or is_strict()):
            missing = InitErrorDetails(type="missing", loc=("content",), input=None)
            raise ValidationError.from_exception_data("ChatMessage", [missing])
        return self

    @property
    def of_tools(self) -> bool:
        """Whether it tells of a call, or answers one."""
        return self.role == "tool" or bool(self.tool_calls)

    def turn(self) -> dict[str, Any]:
        """As chat templates have it."""
        turn: dict[str, Any] = {"role": _ROLES.get(self.role, self.role), "content": self.text}
        if self.tool_calls:
            turn["tool_calls"] = [call.model_dump(include={"id", "type", "function"}) for call in self.tool_calls]
        if self.role == "tool" and self.tool_call_id:
            turn["tool_call_id"] = self.tool_call_id
        return turn

    @property
    def text(self) -> str:
        """The content as one string."""
        return mended("".join(part.text for part in self.content))


def mended(text: str) -> str:
    """Text with U+FFFD for half characters, which JSON carries where a client cut a string; no tokenizer takes them."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
