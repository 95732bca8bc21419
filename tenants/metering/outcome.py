"""How a request ended, and whose doing that was: what we failed at is not billed."""

from __future__ import annotations

import asyncio
from enum import StrEnum

from policies.errors import DeadlineExceeded, ServiceError, Unavailable


class Outcome(StrEnum):
    """How a request ended."""

    SERVED = "served"
    REFUSED = "refused"
    """By what the client asked for."""
    LEFT = "left"
    """Its client did not wait for the end."""
    LATE = "late"
    """Our deadline passed."""
    AWAY = "away"
    """A queue was full, or a part of ours was not there."""
    FAILED = "failed"
    """A fault of ours."""

    @property
    def ours(self) -> bool:
        """Whether it failed by our doing: nothing is billed then, and no quota is used."""
        return self in (Outcome.LATE, Outcome.AWAY, Outcome.FAILED)


def outcome_of(error: BaseException | None) -> Outcome:
    """How a request ended that raised `error`."""
    match error:
        case None:
            return Outcome.SERVED
        case DeadlineExceeded():
            return Outcome.LATE
        case Unavailable():
            return Outcome.AWAY
        case ServiceError() if type(error) is not ServiceError:
            return Outcome.REFUSED
        case asyncio.CancelledError() | GeneratorExit():
            return Outcome.LEFT
        case _:
            return Outcome.FAILED
