"""Requests of OpenAI's responses as served here; what is not is in `parameters`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from deployments.contracts.grammar import ANY_OBJECT, MOST_CHARACTERS, Grammar, GrammarKind
from deployments.gateway.api import parameters
from deployments.gateway.api.response_items import InputItem, MessageItem, turns_of
from deployments.gateway.api.sampled import Sampled
from deployments.gateway.api.schemas import StrictModel, short
from deployments.gateway.api.text_schemas import MOST_MESSAGES
from deployments.gateway.api.tolerance import Unserved
from deployments.gateway.api.tools import MOST_TOOLS, Function, Name, NamedFunction, NamedTool, Offer, Tool
from deployments.prompts.tool_turns import Turns
from policies.errors import InvalidRequest

MOST_METADATA, MOST_INCLUDED = 16, 16
LOGPROBS = "message.output_text.logprobs"
Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class Format(StrictModel):
    """What the answer must be."""

    where: ClassVar[str] = "text.format."

    type: Literal["text", "json_object", "json_schema"] = Field(description="text is anything.")
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Of a schema: its name.")
    description: str | None = Field(default=None, description="Of a schema. Accepted and ignored.")
    schema_: dict[str, Any] | None = Field(default=None, alias="schema", description="JSON Schema of the answer.")
    strict: bool | None = Field(default=None, description="Every schema is followed strictly.")

    def grammar(self) -> Grammar | None:
        """What the answer must be; None: anything. Raises InvalidRequest where it says so by half, or at length."""
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise _invalid("text.format.schema", "schema and type json_schema go together in text.format.")
        if self.type == "text":
            return None
        text = ANY_OBJECT if self.schema_ is None else json.dumps(self.schema_)
        if len(text) > MOST_CHARACTERS:
            raise _invalid("text.format", f"text.format takes at most {MOST_CHARACTERS} characters.")
        return Grammar(GrammarKind.SCHEMA, text, "text.format")

    def told(self) -> dict[str, Any]:
        """As the answer repeats it."""
        return self.model_dump(by_alias=True, exclude_none=True)


class TextOptions(StrictModel):
    """How the answer is written."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.RESPONSE_TEXT
    where: ClassVar[str] = "text."

    format: Format | None = Field(
        default=None,
        description="What the answer must be; below level 1.0 anything but text needs the tier's `logprobs`.",
    )


def _only_functions(kind: Any) -> Any:
    if isinstance(kind, str) and kind != "function":
        raise ValueError(f"tools of type '{kind[:40]}' run nowhere here; offer a function, and answer its calls")
    return kind


class FunctionTool(StrictModel):
    """A function that the model may call."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.FUNCTION_TOOL
    where: ClassVar[str] = "tools[]."

    type: Annotated[Literal["function"], BeforeValidator(_only_functions)] = Field(description="Functions are served.")
    name: Name = Field(description="Its name.")
    description: str | None = Field(default=None, description="What it does, for the model.")
    parameters: dict[str, Any] | None = Field(default=None, description="JSON Schema of its arguments, an object.")
    strict: bool | None = Field(
        default=None, description="Arguments are held to the schema wherever a call is asked for by tool_choice."
    )

    def told(self) -> dict[str, Any]:
        """As the answer repeats it."""
        return {"strict": None, "parameters": None, **self.model_dump(exclude_none=True)}

    def tool(self) -> Tool:
        """As a chat has it."""
        function = Function.model_construct(name=self.name, description=self.description, parameters=self.parameters)
        return Tool.model_construct(type="function", function=function)


class NamedChoice(StrictModel):
    """A function by its name."""

    type: Annotated[Literal["function"], BeforeValidator(_only_functions)] = Field(description="Functions are served.")
    name: Name = Field(description="Its name.")


class AllowedChoice(StrictModel):
    """Functions that may, or of which one has to, be called."""

    type: Literal["allowed_tools"] = Field(description="Some of the tools.")
    mode: Literal["auto", "required"] = Field(description="Whether one has to be called.")
    tools: Annotated[list[NamedChoice], short(MOST_TOOLS)] = Field(min_length=1, description="Which of them.")


def _choice(choice: Any) -> Any:
    # A union's own errors would name its branches, not what to send.
    if choice in ("none", "auto", "required"):
        return choice
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "allowed_tools":
        return AllowedChoice.model_validate(choice)
    if kind == "function":
        return NamedChoice.model_validate(choice)
    raise ValueError("send none, auto, required, {'type': 'function', 'name': ...}, or allowed_tools of functions")


Choice = Annotated[Literal["none", "auto", "required"] | NamedChoice | AllowedChoice, BeforeValidator(_choice)]


def _as_items(given: Any) -> Any:
    """A text is its only message."""
    if isinstance(given, str):
        return [MessageItem.model_validate({"role": "user", "content": given})]
    if isinstance(given, list):
        return given
    raise ValueError("send a text, or a list of items: messages, function_calls and function_call_outputs")


class ResponseStreamOptions(StrictModel):
    """Options of a stream."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.RESPONSE_STREAM_OPTIONS
    where: ClassVar[str] = "stream_options."


class ResponseRequest(Sampled):
    """POST /v1/responses."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.RESPONSE

    input: Annotated[list[InputItem], Field(fail_fast=True), short(MOST_MESSAGES), BeforeValidator(_as_items)] = Field(
        min_length=1, description="What is answered: a text, or the items of a conversation so far."
    )
    instructions: str | None = Field(default=None, description="What the system says, before `input`.")
    max_output_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens of the answer, as far as the context has room; left out, the deployment's"
        " `default_max_tokens`.",
    )
    text: TextOptions | None = Field(default=None, description="How the answer is written.")
    tools: Annotated[list[FunctionTool], short(MOST_TOOLS)] = Field(
        default_factory=list, description="Functions that the model may call. Hosted tools are refused by their type."
    )
    tool_choice: Choice | None = Field(
        default=None,
        description="none, auto, required, a function, or allowed_tools; below level 1.0 what has to be called needs"
        " the tier's `logprobs`.",
    )
    parallel_tool_calls: bool = Field(
        default=True, description="Whether an answer that has to call may call several functions, where the model can."
    )
    include: Annotated[list[Includable], short(MOST_INCLUDED)] = Field(
        default_factory=list,
        description="`message.output_text.logprobs` tells the log-probability of each token, which needs the tier's"
        " grant; the others are of items that no answer here has.",
    )
    top_logprobs: int | None = Field(default=None, ge=0, le=20, description="Likeliest tokens to tell beside each.")
    metadata: Annotated[dict[str, str], short(MOST_METADATA)] = Field(
        default_factory=dict, description="Told back in the answer."
    )
    stream_options: ResponseStreamOptions | None = Field(default=None, description="Usage always comes last.")

    @model_validator(mode="after")
    def _agree(self) -> ResponseRequest:
        if self.top_logprobs and LOGPROBS not in self.include:
            raise _invalid("top_logprobs", f"top_logprobs needs '{LOGPROBS}' in include.")
        return self

    @property
    def logprobs(self) -> int | None:
        """Likeliest tokens to tell beside each; None: no log-probabilities."""
        return self.top_logprobs or 0 if LOGPROBS in self.include else None

    @property
    def turns(self) -> Turns:
        """The conversation, as chat templates have it."""
        return turns_of(self.input, self.instructions)

    def grammar(self) -> Grammar | None:
        """What the answer must be. Raises InvalidRequest as `Format.grammar`."""
        return self.text.format.grammar() if self.text and self.text.format else None

    def offer(self) -> Offer:
        """Its tools.

        Raises:
            InvalidRequest: as `Offer`, or allowed_tools that are not among the tools.
        """
        offered = list(enumerate(self.tools))
        match self.tool_choice:
            case AllowedChoice(mode=mode, tools=allowed):
                names = {one.name for one in allowed}
                if missing := sorted(names - {tool.name for tool in self.tools}):
                    raise _invalid("tool_choice", f"tool_choice allows '{missing[0]}', which is not among the tools.")
                offered = [(at, tool) for at, tool in offered if tool.name in names]
                choice: str | NamedTool | None = mode
            case NamedChoice(name=name):
                choice = NamedTool(type="function", function=NamedFunction(name=name))
            case plain:
                choice = plain
        places = [f"tools[{at}].parameters" for at, _ in offered]
        return Offer([tool.tool() for _, tool in offered], choice, self.parallel_tool_calls, places)

    def told(self) -> dict[str, Any]:
        """What of the request the answer repeats."""
        format_ = self.text.format if self.text else None
        choice = self.tool_choice or "auto"
        return {
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata,
            "parallel_tool_calls": self.parallel_tool_calls,
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            "temperature": self.temperature,
            "text": {"format": format_.told() if format_ else {"type": "text"}},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.told() for tool in self.tools],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": "disabled",
        }


class ResponseByUrl(ResponseRequest):
    """POST /models/{id}/v1/responses."""

    model: str | None = Field(default=None, description="The URL names it.")  # type: ignore[assignment]


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")
