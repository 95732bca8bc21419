"""What every engine refuses with."""

from __future__ import annotations

from policies.errors import first_line

__all__ = ["LoadError", "first_line"]


class LoadError(ValueError):
    """A configured model or its calibration sample cannot be loaded; the message tells the operator what to change."""
