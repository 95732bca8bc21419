"""What of JSON Schema is enforced: a keyword that is not is refused by name, never passed over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_UNENFORCED = frozenset(
    """not if then else contains minContains maxContains uniqueItems propertyNames dependencies dependentRequired
    dependentSchemas unevaluatedItems unevaluatedProperties $dynamicRef $dynamicAnchor $recursiveRef $recursiveAnchor
    contentSchema extends disallow divisibleBy nullable x-guidance""".split()
)
"""Of any draft and of OpenAPI; the last would set the library's own options."""
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = ("items", "additionalItems", "additionalProperties")


def check_schema(text: str) -> None:
    """Refuse a schema that its grammar would not enforce as a whole.

    Raises:
        ValueError: it is no object, or a keyword is not enforced; says which and where.
    """
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise ValueError("a schema is a JSON object")
    for path, part in _parts(schema):
        where = f" in {path}" if path else ""
        if unknown := sorted(_UNENFORCED & part.keys()):
            raise ValueError(f"the keyword '{unknown[0]}'{where} is not supported")
        # Keys beyond the named ones may come twice, and a parser keeps one of them.
        least = part.get("minProperties", 0)
        if isinstance(least, int | float) and least > max(1, len(part.get("required", ()))):
            raise ValueError(
                f"the keyword 'minProperties'{where} is supported up to 1, or the number of keys in 'required'"
            )


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema within a schema, and where it is."""
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        path, part = waiting.pop()
        if not isinstance(part, dict):
            continue
        yield path, part
        for name in _MAPS:
            if isinstance(inner := part.get(name), dict):
                waiting += [(f"{path}/{name}/{key}", value) for key, value in inner.items()]
        for name in _LISTS:
            if isinstance(inner := part.get(name), list):
                waiting += [(f"{path}/{name}/{at}", value) for at, value in enumerate(inner)]
        waiting += [(f"{path}/{name}", part[name]) for name in _SINGLE if isinstance(part.get(name), dict)]
