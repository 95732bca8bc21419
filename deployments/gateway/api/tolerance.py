"""What becomes of a field that nothing here serves: taken where its value asks for nothing, else refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

UNSUPPORTED = "unsupported_parameter"
_UNKNOWN = 20
"""Unknown fields that are named one by one."""


@dataclass(frozen=True)
class Unserved:
    """A field that clients send and that changes nothing here.

    Attributes:
        nothing: the values that ask for nothing; None: whatever the value, the answer is the same.
        instead: what to do where the value asks for something.
        beside: the other fields of the request with which any value asks for nothing.
        beside_said: the same in words.
        in_strict: accepted by a strict gateway, too.
    """

    nothing: tuple[Any, ...] | None = None
    instead: str = "Leave it out."
    beside: Callable[[Mapping[str, Any]], bool] = lambda _: False
    beside_said: str = ""
    in_strict: bool = False

    def asks_nothing(self, value: Any, fields: Mapping[str, Any]) -> bool:
        """Whether a value may be dropped, among a request's other fields."""
        return self.nothing is None or any(_same(value, other) for other in self.nothing) or self.beside(fields)


@dataclass
class Leniency:
    """How one request is read.

    Attributes:
        strict: whether a field that nothing here serves is refused whatever its value.
        ignored: such fields of the request that were dropped, in their order.
    """

    strict: bool = False
    ignored: dict[str, None] = field(default_factory=dict)


leniency: ContextVar[Leniency] = ContextVar("leniency")
"""Of the request that is being read: FastAPI gives a validator no other way to know it."""


def is_strict() -> bool:
    """Whether the request that is being read is read strictly."""
    now = leniency.get(None)
    return now is not None and now.strict


def served_of(
    title: str, fields: dict[str, Any], served: Mapping[str, Any], unserved: Mapping[str, Unserved], where: str
) -> dict[str, Any]:
    """The fields that are served, nulls left out: JSON's null is a field that is not set.

    Args:
        served: the model's own fields.
        unserved: the others that are known.
        where: what goes before their names where it is told which were dropped, such as `messages[].`.

    Raises:
        ValidationError: a field that nothing here serves asks for something, or nobody knows it.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    now = leniency.get(None) or Leniency()
    kept: dict[str, Any] = {}
    unknown = 0
    for name, value in given.items():
        known = unserved.get(name)
        if name in served:
            kept[name] = value
        elif known and (known.in_strict or not now.strict) and known.asks_nothing(value, given):
            now.ignored[where + name] = None
        elif known or unknown == _UNKNOWN:  # each of 100,000 would be an error of its own, and take its time
            raise _refused(title, name, value, known.instead if known and not now.strict else "Leave it out.")
        else:
            kept[name], unknown = value, unknown + 1
    return kept


def _refused(title: str, name: str, value: Any, instead: str) -> ValidationError:
    error = PydanticCustomError(UNSUPPORTED, instead)
    return ValidationError.from_exception_data(title, [InitErrorDetails(type=error, loc=(name,), input=value)])


def _same(value: Any, other: Any) -> bool:
    """Equal as JSON has it: true is not 1, but 1.0 is."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
