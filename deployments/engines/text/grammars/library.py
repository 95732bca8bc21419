"""What of llguidance is used, and with which bounds. Imports nothing else of ours: a process of its own runs it."""

from __future__ import annotations

import json
import re
from typing import Any

from llguidance import LLMatcher, LLParserLimits, regex_to_lark

_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"
"""Between the parts of JSON: room for an indent, no room for a model that writes blanks until it is cut."""


_OPTIONS = {"lenient": False, "coerce_one_of": False, "whitespace_pattern": _WHITESPACE}
_JSON = re.compile(r"%json (.*)")


def limits() -> LLParserLimits:
    """Of one grammar: what its construction, a step and its states may take, counted in the library's own units.

    Of items the library allows 50,000, with which a schema of 300 kinds of nested arrays took 0.7 s of every step; what
    people write has a few hundred.
    """
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=100_000,
        step_max_items=1_500,
        max_lexer_states=25_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def grammar_of(kind: str, text: str) -> str:
    """A grammar as the library writes it.

    Raises:
        ValueError: the text is none of its kind.
    """
    match kind:
        case "json_schema":
            options: Any = _OPTIONS
            return LLMatcher.grammar_from_json_schema(text, overrides=options)
        case "regex":
            # By its own rule `\d` would be every digit of Unicode, some of which others do not know yet.
            return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(text, use_ascii='d')}/")
        case "choice":
            texts = (json.dumps(choice, ensure_ascii=False) for choice in json.loads(text))
            return LLMatcher.grammar_from_lark(f"start: {' | '.join(texts)}")
        case "lark":
            # Each %json is a schema of its own, and has its own options.
            return LLMatcher.grammar_from_lark(_JSON.sub(lambda found: f"%json {_with_options(found[1])}", text))
        case _:
            raise ValueError(f"no grammar is written as {kind}")


def _with_options(schema: str) -> str:
    return json.dumps({"x-guidance": _OPTIONS} | json.loads(schema))
