"""The turns of a conversation as OpenAI's clients send them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import InitErrorDetails, ValidationError

from deployments.gateway.api import parameters
from deployments.gateway.api.schemas import StrictModel, short
from deployments.gateway.api.tolerance import Unserved, is_strict

MOST_PARTS = 1024


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


class ChatMessage(StrictModel):
    """One turn of a conversation."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.MESSAGE
    where: ClassVar[str] = "messages[]."

    role: Literal["system", "developer", "user", "assistant"] = Field(description="Who speaks.")
    content: Annotated[
        list[TextPart],
        Field(fail_fast=True),
        short(MOST_PARTS),
        BeforeValidator(_as_parts),
        WithJsonSchema(_CONTENT_SCHEMA),
    ] = Field(default_factory=list, description="What is said: text, or a list of text parts.")

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        silent = "content" not in self.model_fields_set
        # An assistant's turn may be without words, as clients send one of tool calls.
        if silent and (self.role != "assistant" or is_strict()):
            missing = InitErrorDetails(type="missing", loc=("content",), input=None)
            raise ValidationError.from_exception_data("ChatMessage", [missing])
        return self

    @property
    def text(self) -> str:
        """The content as one string."""
        return mended("".join(part.text for part in self.content))


def mended(text: str) -> str:
    """Text with U+FFFD for half characters, which JSON carries where a client cut a string; no tokenizer takes them."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
