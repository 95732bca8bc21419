"""What an answer must be, in OpenAI's words and in those that vLLM's users know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from deployments.contracts.grammar import ANY_OBJECT, MOST_CHARACTERS, Grammar, GrammarKind
from deployments.gateway.api.schemas import StrictModel, short
from policies.errors import InvalidRequest

MOST_CHOICES = 1024


def _schema_shape(schema: Any) -> Any:
    # A union's own errors would name its branches, not what to send.
    if isinstance(schema, str | dict):
        return schema
    raise ValueError("send a JSON Schema: an object, or its text")


Schema = Annotated[str | dict[str, Any], BeforeValidator(_schema_shape)]
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], short(MOST_CHOICES), Field(min_length=1)]


class JsonSchema(StrictModel):
    """A schema, and its name."""

    name: str = Field(default="schema", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Its name; OpenAI needs it.")
    description: str | None = Field(default=None, description="Accepted and ignored.")
    schema_: dict[str, Any] = Field(alias="schema", description="JSON Schema of the answer.")
    strict: bool | None = Field(default=None, description="Every schema is followed strictly.")


class ResponseFormat(StrictModel):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="text is anything.")
    json_schema: JsonSchema | None = Field(default=None, description="Of type json_schema.")
    schema_: dict[str, Any] | None = Field(
        default=None, alias="schema", description="Of type json_object: JSON Schema of the answer. Not OpenAI's."
    )


class StructuredOutputs(StrictModel):
    """What the answer must be, as vLLM has it: one of these."""

    json_: Schema | None = Field(default=None, alias="json", description="JSON Schema, or its text.")
    regex: str | None = Field(default=None, description="An expression that the whole answer matches.")
    choice: Choices | None = Field(default=None, description="Texts of which the answer is one.")
    json_object: bool | None = Field(default=None, description="Any JSON object.")


class Constrained(StrictModel):
    """The fields of a request that say what its answer must be: one of them at most."""

    response_format: ResponseFormat | None = Field(
        default=None,
        description="What the answer must be; below level 1.0 anything but text needs the tier's `logprobs`.",
    )
    structured_outputs: StructuredOutputs | None = Field(default=None, description="The same, as vLLM has it.")
    guided_json: Schema | None = Field(default=None, description="JSON Schema, or its text: vLLM's older name.")
    guided_regex: str | None = Field(default=None, description="An expression: vLLM's older name.")
    guided_choice: Choices | None = Field(default=None, description="Texts of which one: vLLM's older name.")

    def grammar(self) -> Grammar | None:
        """What every answer must be; None: anything.

        Raises:
            InvalidRequest: two fields say it, or one says it by half, or at too great a length.
        """
        asked = list(self._asked())
        if len(asked) > 1:
            first, second = asked[0].param, asked[1].param
            raise _invalid(second, f"{first} and {second} both say what the answer must be; give one of them.")
        if asked and len(asked[0].text) > MOST_CHARACTERS:
            raise _invalid(asked[0].param, f"{asked[0].param} takes at most {MOST_CHARACTERS} characters.")
        return asked[0] if asked else None

    def _asked(self) -> Iterator[Grammar]:
        match self.response_format:
            case ResponseFormat(schema_=dict(), type=kind) if kind != "json_object":
                raise _invalid("response_format.schema", f"schema goes with type json_object, not {kind}.")
            case ResponseFormat(type="json_object", json_schema=None, schema_=schema):
                asked = ANY_OBJECT if schema is None else _text(schema)
                yield Grammar(GrammarKind.SCHEMA, asked, "response_format")
            case ResponseFormat(type="json_schema", json_schema=JsonSchema(schema_=schema)):
                yield Grammar(GrammarKind.SCHEMA, _text(schema), "response_format")
            case ResponseFormat(type="json_schema"):
                raise _invalid(
                    "response_format.json_schema", "A response_format of type json_schema needs json_schema."
                )
            case ResponseFormat(json_schema=JsonSchema(), type=kind):
                raise _invalid("response_format.json_schema", f"json_schema goes with type json_schema, not {kind}.")
        if (own := self.structured_outputs) is not None:
            given = list(_grammars("structured_outputs", own.json_, own.regex, own.choice))
            if own.json_object:
                given.append(Grammar(GrammarKind.SCHEMA, ANY_OBJECT, "structured_outputs"))
            if len(given) != 1:
                raise _invalid(
                    "structured_outputs", "structured_outputs takes one of json, regex, choice, json_object."
                )
            yield given[0]
        yield from _grammars("guided_json", json_=self.guided_json)
        yield from _grammars("guided_regex", regex=self.guided_regex)
        yield from _grammars("guided_choice", choice=self.guided_choice)


def _grammars(
    param: str, json_: Schema | None = None, regex: str | None = None, choice: list[str] | None = None
) -> Iterator[Grammar]:
    if json_ is not None:
        yield Grammar(GrammarKind.SCHEMA, json_ if isinstance(json_, str) else _text(json_), param)
    if regex is not None:
        yield Grammar(GrammarKind.REGEX, regex, param)
    if choice is not None:
        yield Grammar(GrammarKind.CHOICE, _text(choice), param)


def _text(value: Any) -> str:
    return json.dumps(value)


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")
