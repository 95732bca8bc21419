"""Chat templates, filled as transformers fills them: jinja2's sandbox, and the names that templates are written for.

Transformers' own function for it loads numpy and much else; what is here has jinja2 alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

Turn = Mapping[str, Any]


class Template:
    """One model's chat template.

    Args:
        source: its text.
        variables: further names that it may use: the tokenizer's special tokens.

    Raises:
        TemplateError: it is none.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self._filled = _environment().from_string(source)
        self._variables = dict(variables)

    def render(self, turns: Sequence[Turn], tools: Any = None, *, prompt: bool) -> str:
        """A conversation as the model reads it; with `prompt`, ready for the assistant's answer.

        Raises:
            Exception: whatever a template does, `raise_exception` included.
        """
        return self._filled.render(
            messages=[dict(turn) for turn in turns],
            tools=tools,
            documents=None,
            add_generation_prompt=prompt,
            **other_names(tools),
            **self._variables,
        )


def other_names(tools: Any) -> dict[str, Any]:
    """Tools by what a family's template calls them beside `tools`: SmolLM3's."""
    return {"xml_tools": tools} if tools else {}


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _refuse, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace}
    return made


class _Generation(Extension):
    """`{% generation %}`: marks the assistant's part for those who train; a block of its own here."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict`, without a class's ways into the interpreter."""

    def __call__(self, *args: Any, **fields: Any) -> dict[Any, Any]:
        return dict(*args, **fields)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace`, without names that begin with an underscore."""

    def __init__(*args: Any, **fields: Any) -> None:
        own, *given = args
        made = dict(*given, **fields)
        for name in made:
            _check_name(name)
        Namespace.__init__(own, made)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"A template may not set {name!r}: it begins with an underscore.")


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
