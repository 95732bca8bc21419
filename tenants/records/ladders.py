"""What happens when a quota or a budget is used up, or a model is busy: the levels that answers step down to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

DEFAULT_PERCENT = 10
"""Of a quota or a budget, for a step before the last that names no share."""
DEFAULT_WAITING = 16
"""Requests that must wait for a model, for a first step that says nothing of it; for each further one twice as many."""
MOST_STEPS = 8
_LADDER = re.compile(r"step\((.*)\)")
_LEVEL = re.compile(r"0\.\d{1,2}")


@dataclass(frozen=True, slots=True)
class Step:
    """One level of a ladder.

    Attributes:
        number: of `when_exhausted` the percentage of each quota and budget that may be used at it, None for a last one
            without end; of `when_busy` how many requests must wait.
    """

    level: float
    number: int | None


@dataclass(frozen=True)
class Ladder:
    """Levels, falling; none of `refuse`, and of a model that is never busy.

    Attributes:
        text: as it was written.
    """

    steps: tuple[Step, ...] = ()
    text: str = "refuse"

    def __str__(self) -> str:
        return self.text

    @property
    def percents(self) -> list[int | None]:
        """Of `when_exhausted`: up to which percentage of each quota and budget answers are given at one's own level,
        and at each step; None: without end."""
        found: list[int | None] = [100 - sum(step.number or 0 for step in self.steps)]
        for step in self.steps:
            found.append(None if step.number is None or found[-1] is None else found[-1] + step.number)
        return found


REFUSE = Ladder()


def exhausted(text: str) -> Ladder:
    """`refuse`, or `step(0.9:20%, 0.7)`. Raises ValueError."""
    if text.strip() == "refuse":
        return REFUSE
    found = _steps(text, "%", "step(0.9:20%, 0.7) or refuse")
    last = len(found) - 1
    steps = tuple(
        Step(level, DEFAULT_PERCENT if number is None and at < last else number)
        for at, (level, number) in enumerate(found)
    )
    if any(step.number == 0 for step in steps) or sum(step.number or 0 for step in steps) > 99:
        raise ValueError("the shares of its steps must be 1% or more and leave 1% or more above them")
    return Ladder(steps, text.strip())


def busy(text: str) -> Ladder:
    """`never`, or `step(0.9:16, 0.7:64)`. Raises ValueError."""
    if text.strip() == "never":
        return NEVER
    found = _steps(text, "", "step(0.9:16, 0.7:64) or never")
    steps = tuple(
        Step(level, DEFAULT_WAITING * 2**at if number is None else number) for at, (level, number) in enumerate(found)
    )
    numbers = [step.number or 0 for step in steps]
    if numbers != sorted(set(numbers)) or numbers[0] < 1:
        raise ValueError("of each step more requests must wait than of the one before, and of the first 1 or more")
    return Ladder(steps, text.strip())


NEVER = Ladder(text="never")


def _steps(text: str, unit: str, expected: str) -> list[tuple[float, int | None]]:
    match = _LADDER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected {expected}")
    found = []
    for piece in match[1].split(","):
        level, colon, number = piece.strip().partition(":")
        if not _LEVEL.fullmatch(level) or not float(level):
            raise ValueError(f"expected levels from 0.99 down to 0.01 in steps of 0.01, as in {expected}")
        if colon and not re.fullmatch(rf"[0-9]{{1,6}}{unit}", number):
            raise ValueError(f"after a level's ':' expected {'a percentage' if unit else 'a number'}, as in {expected}")
        found.append((float(level), int(number.removesuffix(unit)) if colon else None))
    levels = [level for level, _ in found]
    if levels != sorted(set(levels), reverse=True):
        raise ValueError("each step must be at a lower level than the one before")
    if len(found) > MOST_STEPS:
        raise ValueError(f"expected {MOST_STEPS} steps at most")
    return found


def levels_of(text: str) -> set[float]:
    """The levels that a record's ladder may lead to; none of one that does not validate."""
    for parse in (exhausted, busy):
        try:
            return {step.level for step in parse(text).steps}
        except ValueError:
            pass
    return set()


def _exhausted(value: Any) -> Any:
    return exhausted(value) if isinstance(value, str) else value


def _busy(value: Any) -> Any:
    return busy(value) if isinstance(value, str) else value


Exhausted = Annotated[Ladder, BeforeValidator(_exhausted)]
Busy = Annotated[Ladder, BeforeValidator(_busy)]
