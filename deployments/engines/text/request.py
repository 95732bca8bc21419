"""One answer on its way through the engine, and how far it is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from deployments.contracts.spending import Meter
from deployments.engines.text.sampling import SamplingParams
from deployments.engines.text.scheduler import pages_of
from deployments.engines.text.seat import LogprobRecord, Seat
from policies.errors import Unavailable


@dataclass(frozen=True)
class Progress:
    """How far an answer is.

    Attributes:
        read: tokens of the prompt that have been read, or that the model had in its cache.
        tokens: those that came since the last word; none while the prompt is being read.
        last: whether that is all.
        records: one for each of them where log-probabilities were asked for, else none.
        cached: of `read`, those that the model had in its cache.
        echoed: one for each token of the prompt but its first, where their log-probabilities were asked for, once it
            has been read.
    """

    read: int
    tokens: list[int]
    last: bool
    records: list[LogprobRecord]
    cached: int = 0
    echoed: list[LogprobRecord] = field(default_factory=list)


@dataclass(eq=False)
class Request:
    """One answer on its way. `events` brings its progress, or the error."""

    flow: str
    prompt: list[int]
    params: SamplingParams
    seat: Seat
    id: str
    meter: Meter
    events: asyncio.Queue[Progress | Unavailable] = field(default_factory=asyncio.Queue)
    number: int | None = None
    told: int = 0
    cached: int | None = None
    finished: bool = False

    @property
    def pages(self) -> int:
        """Of the whole answer, which are reserved before the first token."""
        return pages_of(len(self.prompt) + self.params.drawn)
