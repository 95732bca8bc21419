"""Whether a replica's device still computes, told from what becomes of its answers. No Ray."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from policies.errors import ServiceError

SUSPICIOUS = 3
"""Failures in a row from which on an input of our own is tried."""


class Vitals:
    """Counts answers that fail, and tries the model itself where they do so again and again.

    A bad input makes its own answer fail, and a tenant may send many: failures alone prove nothing. A device that has
    failed for good, as CUDA does after an illegal access, fails on any input.

    Args:
        trial: has the model answer an input that it can; raises where it cannot.
    """

    def __init__(self, trial: Callable[[], object]) -> None:
        self._trial, self._failures = trial, 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """One answer being made. What is refused (a `ServiceError`) or left by its client tells nothing."""
        try:
            yield
        except ServiceError:
            raise
        except Exception:
            self._failures += 1
            raise
        self._failures = 0

    async def check(self, run: Callable[[Callable[[], object]], Awaitable[None]]) -> None:
        """Try the model where answers fail again and again.

        Args:
            run: calls something where forwards run, one at a time.

        Raises:
            RuntimeError: it fails as well.
        """
        if self._failures < SUSPICIOUS:
            return
        try:
            await run(self._trial)
        except Exception as error:
            raise RuntimeError(f"forwards fail: {type(error).__name__}: {error}") from error
        self._failures = 0
