"""What every engine refuses with."""

from __future__ import annotations


class LoadError(ValueError):
    """A configured model or its calibration sample cannot be loaded; the message tells the operator what to change."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, short enough for one line of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
