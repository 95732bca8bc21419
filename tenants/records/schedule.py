"""Changes that a record makes of itself: from a moment on `at:<moment>:<field>` is that field's value.

Nobody carries them out: whoever reads a record after the moment reads it so, every gateway at once, and the next edit
writes it down. `at:<moment>:-<field>` removes a field.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from tenants.records.fields import iso, parse_moment

PREFIX = "at:"
_NAME = re.compile(r"at:(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ):(-?)(.+)", re.DOTALL)
Fields = Mapping[str, str]


def name(moment: float, field: str, value: str | None) -> str:
    """The field that changes another one at a moment, in unix seconds; None removes it then."""
    return f"{PREFIX}{iso(moment)}:{'-' if value is None else ''}{field}"


def parse(field: str) -> tuple[float, str, bool] | None:
    """Moment, field, and whether it goes; None where this is no such name."""
    match = _NAME.fullmatch(field)
    try:
        return None if match is None else (parse_moment(match[1]), match[3], bool(match[2]))
    except ValueError:
        return None


def subject(field: str) -> str:
    """The field that is changed in the end, by whichever name."""
    parsed = parse(field)
    return parsed[1] if parsed else field


def sets(field: str) -> str:
    """As `subject`, "" where it is removed."""
    parsed = parse(field)
    return field if parsed is None else "" if parsed[2] else parsed[1]


def moments(fields: Fields) -> list[float]:
    """When a record changes, in their order."""
    return sorted({parsed[0] for field in fields if (parsed := parse(field))})


def due(fields: Fields, now: float | None = None) -> dict[str, str | None]:
    """What is to be written down of the changes whose moment has come: new values, and None for what goes."""
    at = time.time() if now is None else now
    found = sorted((parsed, field) for field in fields if (parsed := parse(field)) and parsed[0] <= at)
    changes: dict[str, str | None] = {}
    for (_, changed, removed), field in found:
        changes[changed] = None if removed else fields[field]
        changes[field] = None
    return changes


def folded(fields: Fields, now: float | None = None) -> dict[str, str]:
    """A record as it is at a moment, with what is still to come; None: now."""
    changes = due(fields, now)
    kept = {field: value for field, value in fields.items() if field not in changes}
    return kept | {field: value for field, value in changes.items() if value is not None}
