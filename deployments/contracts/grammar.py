"""What an answer must be, as the gateway tells it to an engine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MOST_CHARACTERS = 131_072
"""Of one grammar: eight times the largest schema of a thousand public ones."""


class GrammarKind(StrEnum):
    """How a grammar is written."""

    SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    """A list of texts, in JSON."""
    LARK = "lark"
    """As the library's own variant of Lark has it; never a client's."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What every answer of a request must be.

    Attributes:
        text: the schema (JSON), the expression that the whole answer matches, or the choices.
        param: the request's field that it came in.
    """

    kind: GrammarKind
    text: str
    param: str


ANY_OBJECT = '{"type": "object"}'
"""The schema of `json_object`."""
