"""What replicas tell the person at the console: Ray forwards a worker's output there, and `make serve` picks it out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

MARK = "[aim] "
"""Starts every line that is meant for the person at the console."""
FAILED = "failed:"


def announce(subject: str, text: str) -> None:
    """Say what a deployment is doing, in one line."""
    # Not print: Serve puts its logger in the place of both of Python's streams, and Ray forwards the descriptor.
    os.write(1, f"{MARK}{subject}: {text}\n".encode())


@contextmanager
def announced(subject: str, source: str) -> Iterator[None]:
    """Announces that something loads, and that it is ready or why it failed."""
    announce(subject, f"loading {source}")
    try:
        yield
    except Exception as error:
        announce(subject, f"{FAILED} {' '.join(str(error).split()) or type(error).__name__}")
        raise
    announce(subject, "ready")
