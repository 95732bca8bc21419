"""What a call has used of a model: counted by the replica, asked for by the gateway where an answer was cut short."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

KEPT = 10_000
"""Calls cut short that a replica remembers until it is asked: more than are under way at a time."""


@dataclass(frozen=True)
class Spent:
    """What a call had used when it was over.

    Attributes:
        tokens_in: of its prompts, as far as they were read.
        tokens_out: that were made for it, those included that nobody read any more.
        images: whether its picture was in a forward.
    """

    tokens_in: int = 0
    tokens_out: int = 0
    images: int = 0


class Meter:
    """Counts one call while it and its sequences run. Of one event loop, but for `images`."""

    def __init__(self) -> None:
        self.images = 0
        self._drawn = self._open = 0
        self._read: dict[int, tuple[Sequence[int], int]] = {}
        self._closed = asyncio.Event()

    def open(self) -> None:
        """One more part of the call runs."""
        self._open += 1

    def close(self, drawn: int = 0) -> None:
        """One fewer; so many tokens were made in it."""
        self._drawn += drawn
        self._open -= 1
        if not self._open:
            self._closed.set()

    def read(self, prompt: Sequence[int], count: int) -> None:
        """So much of a prompt has been read; answers to one prompt (one object) read it once."""
        self._read[id(prompt)] = (prompt, max(count, self._read.get(id(prompt), (prompt, 0))[1]))

    async def total(self) -> Spent:
        """All that was used, once no part runs."""
        await self._closed.wait()
        return Spent(sum(count for _, count in self._read.values()), self._drawn, self.images)


class Spending:
    """A replica's calls by number: those that run, and what those had used that were cut short."""

    def __init__(self) -> None:
        self._running: dict[str, Meter] = {}
        self._cut: OrderedDict[str, Meter] = OrderedDict()

    @contextmanager
    def of(self, call: str) -> Iterator[Meter]:
        """A call's meter, within which the call runs; without a number nobody can ask for it."""
        meter = Meter()
        meter.open()
        self._running[call] = meter
        try:
            yield meter
        except (asyncio.CancelledError, GeneratorExit):
            if call:
                self._cut[call] = meter
            if len(self._cut) > KEPT:
                self._cut.popitem(last=False)
            raise
        finally:
            self._running.pop(call, None)
            meter.close()

    async def spent(self, call: str) -> Spent | None:
        """What a call had used that was cut short, or is about to be; None of others, and of those not known."""
        meter = self._running.get(call) or self._cut.get(call)
        if meter is None:
            return None
        total = await meter.total()
        return total if self._cut.pop(call, None) else None
