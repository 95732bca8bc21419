"""Tools of a chat: what a request offers, and the grammar by which a model has to call one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from deployments.contracts.catalog import ModelInfo
from deployments.contracts.grammar import MOST_CHARACTERS, Grammar, GrammarKind
from deployments.contracts.schemas import check_schema
from deployments.contracts.tools import TOOLS_ROLE, CallForm
from deployments.gateway.api.schemas import StrictModel, short
from deployments.gateway.api.tool_calls import CallReader
from deployments.prompts.tool_turns import Turns
from policies.errors import InvalidRequest

MOST_TOOLS = 128
"""OpenAI's own limit."""
MOST_CALLS = 16
"""Calls of one answer, where a grammar has to end."""
_NO_ARGUMENTS = {"type": "object", "properties": {}}
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Function(StrictModel):
    """A function that the model may call."""

    name: Name = Field(description="Its name.")
    description: str | None = Field(default=None, description="What it does, for the model.")
    parameters: dict[str, Any] | None = Field(default=None, description="JSON Schema of its arguments, an object.")
    strict: bool | None = Field(
        default=None, description="Arguments are held to the schema wherever a call is asked for by tool_choice."
    )


class Tool(StrictModel):
    """A tool that the model may call."""

    type: Literal["function"] = Field(description="Functions are served.")
    function: Function = Field(description="The function.")


class NamedFunction(StrictModel):
    """A function by its name."""

    name: Name = Field(description="Its name.")


class NamedTool(StrictModel):
    """The tool that has to be called."""

    type: Literal["function"] = Field(description="Functions are served.")
    function: NamedFunction = Field(description="The function.")


def _choice_shape(choice: Any) -> Any:
    # A union's own errors would name its branches, not what to send.
    if isinstance(choice, dict) and choice.get("type") == "function":
        return NamedTool.model_validate(choice)
    if choice in ("none", "auto", "required"):
        return choice
    raise ValueError("send none, auto, required, or {'type': 'function', 'function': {'name': ...}}")


Tools = Annotated[list[Tool], short(MOST_TOOLS)]
ToolChoice = Annotated[Literal["none", "auto", "required"] | NamedTool, BeforeValidator(_choice_shape)]


class Offer:
    """The tools of one request.

    Args:
        tools: those of the request.
        choice: whether, and which of them, has to be called; None: as the model likes.
        parallel: whether one answer may have several calls.
        places: where the request has the schema of each one's arguments, for refusals.

    Raises:
        InvalidRequest: a choice without tools, or of one that is not there; names the field.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        choice: str | NamedTool | None,
        parallel: bool,
        places: Sequence[str] | None = None,
    ) -> None:
        self._tools, self._parallel = tools, parallel
        self._places = places or [f"tools[{at}].function.parameters" for at in range(len(tools))]
        self._named = choice.function.name if isinstance(choice, NamedTool) else None
        self._required = choice == "required" or self._named is not None
        names = [tool.function.name for tool in tools]
        if len(set(names)) < len(names):
            raise _invalid("tools", "Two tools have one name; give each its own.")
        if self._required and not tools:
            raise _invalid("tool_choice", "tool_choice asks for a call, but there are no tools.")
        if self._named is not None and self._named not in names:
            raise _invalid("tool_choice", f"tool_choice names '{self._named}', which is not among the tools.")
        self.offered = choice != "none" and bool(tools)

    @property
    def names(self) -> frozenset[str]:
        """Of what the model may call."""
        return frozenset(tool.function.name for tool in self._tools) if self.offered else frozenset()

    def turn(self, form: CallForm) -> dict[str, str]:
        """The turn that tells a model's template of them."""
        told = [_whole(tool) for tool in self._tools] if self.offered else []
        return {"role": TOOLS_ROLE, "form": form, "content": json.dumps(told, ensure_ascii=False)}

    def grammar(self, form: CallForm) -> Grammar | None:
        """What an answer must be that has to call; None where it need not.

        Raises:
            InvalidRequest: the arguments of a function cannot be held to its schema, or there is too much of them.
        """
        if not self._required:
            return None
        rules, calls = [], []
        for at, tool in enumerate(self._tools):
            if self._named in (None, tool.function.name):
                rules.append(f"a{at}: %json {_arguments(self._places[at], tool.function)}")
                calls.append(f"{_literal(_opening(form, tool.function.name))} a{at}")
        close = _literal("}" if form is CallForm.LLAMA else "}\n</tool_call>")
        several = self._parallel and self._named is None and form is not CallForm.LLAMA
        start = f'call ("\\n" call){{0,{MOST_CALLS - 1}}}' if several else "call"
        text = "\n".join([f"start: {start}", f"call: ({' | '.join(calls)}) {close}", *rules])
        if len(text) > MOST_CHARACTERS:
            raise _invalid("tools", f"tools that have to be called take at most {MOST_CHARACTERS} characters.")
        return Grammar(GrammarKind.LARK, text, "tool_choice")


def offered(
    offer: Offer, info: ModelInfo, turns: Turns, grammar: Grammar | None
) -> tuple[Turns, Grammar | None, Callable[[], CallReader] | None]:
    """A conversation that is told of its tools, the grammar that its answer must be, and what reads calls from it.

    Args:
        grammar: what the request says beside its tools that the answer must be.

    Raises:
        InvalidRequest: the model calls no tools, or two fields say what the answer must be.
    """
    form = form_of(info)
    called = offer.grammar(form)
    if called is not None and grammar is not None:
        raise InvalidRequest(
            f"{called.param} asks for a call, and {grammar.param} for an answer of a form; leave one out.",
            param=grammar.param,
            code="invalid_value",
        )
    reader = partial(CallReader, form, offer.names) if offer.offered else None
    return [offer.turn(form), *turns], called or grammar, reader


def form_of(info: ModelInfo) -> CallForm:
    """How a model calls tools.

    Raises:
        InvalidRequest: it cannot; names it.
    """
    if info.tools is None:
        raise _invalid(
            "tools",
            f"{info.id} calls no tools: its chat template takes none, or writes calls in a form that is not read here."
            " Leave tools out, or send tool_choice 'none'.",
        )
    return info.tools


def _whole(tool: Tool) -> dict[str, Any]:
    """As templates read it: some, such as Hermes's, refuse a function without description or parameters."""
    whole: dict[str, Any] = tool.model_dump(exclude_none=True)
    return whole | {"function": {"description": "", "parameters": _NO_ARGUMENTS} | whole["function"]}


def _opening(form: CallForm, name: str) -> str:
    if form is CallForm.LLAMA:
        return f'{{"name": "{name}", "parameters": '
    return f'<tool_call>\n{{"name": "{name}", "arguments": '


def _arguments(param: str, function: Function) -> str:
    schema = function.parameters or _NO_ARGUMENTS | {"additionalProperties": False}
    text = json.dumps({"type": "object"} | schema)
    try:
        check_schema(text)
    except ValueError as error:
        raise _invalid(param, f"Invalid schema in {param}: {error}.") from None
    return text


def _literal(text: str) -> str:
    return json.dumps(text)


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")
