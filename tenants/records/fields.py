"""How a record's fields are written: `unlimited`, comma lists, times."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def _listed(value: Any) -> Any:
    """`*` is everything (None); a comma list, or a JSON list where a name holds a comma, is its names."""
    if not isinstance(value, str):
        return value
    if value.strip() == "*":
        return None
    if value.lstrip().startswith("["):
        return frozenset(json_names(value))
    return frozenset(part for part in (piece.strip() for piece in value.split(",")) if part)


def listed(names: Iterable[str]) -> str:
    """Names as a record holds them: a comma list, or a JSON list where one of them holds a comma."""
    wanted = sorted(names)
    plain = all("," not in name and not name.startswith("[") and name == name.strip() for name in wanted)
    return ",".join(wanted) if plain else json.dumps(wanted, ensure_ascii=False)


def names_of(text: str) -> list[str]:
    """The names of a list as a record holds it, sorted; none of `*`, or where it does not validate."""
    try:
        found = _listed(text)
    except ValueError:
        return []
    return sorted(found or ())


def json_names(text: str) -> list[str]:
    """A JSON list of names. Raises ValueError."""
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError('expected a comma list, or a JSON list such as ["tench, Tinca tinca", "goldfish"]')
    return names


def unbounded(word: str) -> BeforeValidator:
    """Reads `word` as no bound (None)."""
    return BeforeValidator(lambda value: None if isinstance(value, str) and value.strip() == word else value)


def _micro(value: Any) -> Any:
    """Money; what looks like currency units is refused, since it would be a million times too little."""
    if not isinstance(value, str):
        return value
    if value.strip() == "unlimited":
        return None
    if not value.strip().isdecimal():
        raise ValueError("expected whole micro-units, such as 25000000 for 25.00, or unlimited")
    return int(value)


def parse_moment(text: str) -> float:
    """ISO 8601 (UTC where it names no zone) or unix seconds, to unix seconds. Raises ValueError."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        parsed = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError("expected ISO 8601 such as 2030-01-31T12:00:00Z, or unix seconds") from None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def _moment(value: Any) -> Any:
    return parse_moment(value) if isinstance(value, str) else value


Names = Annotated[frozenset[str] | None, BeforeValidator(_listed)]
Limit = Annotated[int | None, Field(ge=0, le=2**53), unbounded("unlimited")]
Money = Annotated[int | None, Field(ge=0, le=2**53), BeforeValidator(_micro)]
"""In micro-units of a currency."""
Moment = Annotated[float | None, Field(ge=0.0, le=253402300799.0, allow_inf_nan=False), BeforeValidator(_moment)]


def iso(moment: float) -> str:
    """Unix seconds as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
