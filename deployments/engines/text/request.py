"""One answer on its way through the engine, and how far it is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from deployments.contracts.spending import Meter
from deployments.engines.text.sampling import SamplingParams
from deployments.engines.text.scheduler import pages_of
from deployments.engines.text.seat import LogprobRecord, Seat
from policies.errors import ServiceError, Unavailable


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
    events: asyncio.Queue[Progress | ServiceError] = field(default_factory=asyncio.Queue)
    number: int | None = None
    told: int = 0
    cached: int | None = None
    finished: bool = False

    @property
    def pages(self) -> int:
        """Of the whole answer, which are reserved before the first token."""
        return pages_of(len(self.prompt) + self.params.drawn)

    def read(self, left: int, step: int) -> None:
        """All but `left` tokens of the prompt are in a step, which has `step` of them, or read before it."""
        read = len(self.prompt) - left
        self.meter.read(self.prompt, read)
        if self.cached is None:  # what its first step need not read
            self.cached = max(0, read - step)
        self.events.put_nowait(Progress(read, [], False, [], self.cached))

    def drew(self, answer: list[int], last: bool) -> None:
        """The answer is so long now; `last`: that is all of it."""
        told, self.told = self.told, len(answer)
        self.meter.read(self.prompt, len(self.prompt))
        records = self.seat.records[told : self.told]
        told_of = (records, self.cached or 0, self.seat.read)
        self.events.put_nowait(Progress(len(self.prompt), answer[told:], last, *told_of))


def failed() -> ServiceError:
    """What a request is told that the engine failed on alone."""
    return ServiceError(
        "The text engine failed on this request, and goes on with others; send another.", code="generation_failed"
    )


def stopped() -> Unavailable:
    """What all are told whose engine has ended."""
    return Unavailable(
        "The text engine has stopped; its replica is being restarted.", retry_after=5, code="engine_stopped"
    )
