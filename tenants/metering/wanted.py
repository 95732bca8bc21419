"""What a request asks to be admitted with: so much of each counter, and what it would cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tenants.live.entitlements import Entitlements
from tenants.metering.meters import Counter, Limit, Meter
from tenants.records.prices import FREE, Tariff


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens that a request may use.

    Attributes:
        most: prompt and answer together, at most. What is not used is returned.
        least: will do where less is left: the answer then has to end sooner.
        prompt: of the prompt alone; None: not known.
    """

    most: int = 0
    least: int = 0
    prompt: int | None = None


class Rung(NamedTuple):
    """A level at which a request can be answered, and what it costs there.

    Attributes:
        percent: of each quota and budget, up to which answers are given at it; None: without end.
    """

    level: float
    tariff: Tariff
    percent: int | None = 100

    def share(self, most: int) -> int | None:
        """How much of a quota or a budget may be used by answers at this level and above; None: it has no end."""
        return None if self.percent is None else most * self.percent // 100


def rungs_of(
    own: Entitlements,
    model: str,
    asked: float,
    *,
    floor: float,
    waiting: int,
    answerable: Callable[[float], bool],
) -> list[Rung]:
    """The levels that a request can be answered at, the best first.

    Args:
        asked: its own, or the lower one that it asks for.
        floor: the model's lowest.
        waiting: requests that wait for the model now.
        answerable: whether a level discloses what the request wants; one that does not is left out.
    """
    best = asked
    for step in own.when_busy.steps:
        level = max(floor, min(asked, step.level))
        if waiting >= (step.number or 0) and answerable(level):
            best = level
    percents = own.when_exhausted.percents
    found = [(best, percents[0])]
    for step, percent in zip(own.when_exhausted.steps, percents[1:], strict=True):
        level = max(floor, min(best, step.level))
        if answerable(level):
            found.append((level, percent))
    return [Rung(level, FREE if own.plan is None else own.plan.tariff(model, level), share) for level, share in found]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One request's: amounts, and the levels that it can be answered at, the best first."""

    requests: int
    images: int
    tokens: Tokens
    rungs: Sequence[Rung]

    def meters(self) -> list[Meter]:
        """What it adds, whatever its level."""
        running = 1 if self.requests else 0
        return [
            Meter(Counter.REQUESTS, self.requests, self.requests),
            Meter(Counter.IMAGES, self.images, self.images),
            Meter(Counter.TOKENS, self.tokens.most, self.tokens.least),
            Meter(Counter.RUNNING, running, running),
        ]

    def costs(self) -> list[Meter]:
        """What it adds in money, by rung."""
        return [
            Meter(Counter.COST, self._cost(rung, self.tokens.most), self._cost(rung, self.tokens.least))
            for rung in self.rungs
        ]

    def least(self, limit: Limit) -> int:
        """How much of a limit's counter will do, on the last rung."""
        match limit.counter:
            case Counter.REQUESTS:
                return self.requests
            case Counter.IMAGES:
                return self.images
            case Counter.TOKENS:
                return self.tokens.least
            case Counter.RUNNING:
                return 1 if self.requests else 0
            case Counter.COST:
                return self._cost(self.rungs[-1], self.tokens.least)

    def shares(self, limit: Limit) -> list[int]:
        """How much of a limit there is, by rung: of a rate all, of a quota or a budget the share; -1 has no end."""
        if limit.is_rate:
            return [limit.most] * len(self.rungs)
        return [-1 if (share := rung.share(limit.most)) is None else share for rung in self.rungs]

    def _cost(self, rung: Rung, tokens: int) -> int:
        return rung.tariff.most(requests=self.requests, images=self.images, tokens=tokens, prompt=self.tokens.prompt)
