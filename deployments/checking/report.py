"""What a check found of one model, for people and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

WIDTH = 13
"""Of the names of facts, in letters."""


@dataclass
class Report:
    """One model.

    Attributes:
        facts: name to a line of text, in the order of the check.
        problems: a line each, which says what to change.
    """

    model: str
    task: str
    source: str
    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether it can be served as it is."""
        return not self.problems

    def lines(self) -> list[str]:
        """For people."""
        facts = [f"  {name:<{WIDTH}} {text}" for name, text in self.facts.items()]
        problems = [f"  ✗ {text}" for text in self.problems]
        return [f"{self.model}  ({self.task}, {self.source})", *facts, *(problems or ["  ✓ it can be served"])]

    def to_json(self) -> dict[str, Any]:
        """The same, and whether it is good."""
        return asdict(self) | {"good": self.good}


def counted(names: tuple[str, ...], most: int = 6) -> str:
    """The first of some names, and how many there are."""
    shown = "; ".join(names[:most])
    return f"{len(names)}: {shown}" + ("; ..." if len(names) > most else "")


def took(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 1.0:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.2g} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def size(number: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.3g} {unit}"
        number /= 1000
    raise AssertionError
