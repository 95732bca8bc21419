"""Limits in words and numbers: what a refused client is told, what every client's headers say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from policies.errors import LimitExceeded, Unavailable
from tenants.metering.meters import MINUTE, MINUTE_S, NOW, Counter, Limit
from tenants.records.ladders import Ladder
from tenants.records.prices import spoken

NO_WAIT_HELPS = -1


class Reading(NamedTuple):
    """What is used of a limit; `reset_ms` is the time until nothing is, or until its period ends."""

    limit: Limit
    used: int
    reset_ms: int

    @property
    def left(self) -> int:
        """What is left of it."""
        return max(0, self.limit.most - self.used)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a request may run: the limit that forbids it or None, and what is used of each.

    Attributes:
        wait_ms: time until a retry can succeed, -1 if none can.
        at: unix second of the store's clock, 0 where the store was not asked.
        tokens: how many of the tokens asked for are reserved.
        cost: micro-units that are reserved: it will not cost more.
        rung: index of the level that it is answered at, by `Wanted.rungs`.
        stepped_by: the limit of which the rung above had not enough left; None at the best.
    """

    forbidden_by: Limit | None = None
    wait_ms: int = 0
    readings: tuple[Reading, ...] = ()
    at: int = 0
    tokens: int = 0
    cost: int = 0
    rung: int = 0
    stepped_by: Limit | None = None

    def left(self, counter: Counter) -> float:
        """What is left of a counter by the tightest of its limits; infinity where there is none."""
        return min((r.left for r in self.readings if r.limit.counter is counter), default=math.inf)


def read_answer(limits: Sequence[Limit], answer: bytes) -> Judgement:
    """`admit.lua`'s answer. Raises Unavailable where the request was given up before the store heard of it."""
    verdict, wait_ms, at, tokens, cost, rung, stepped, *numbers = map(int, answer.split())
    if verdict < 0:
        raise Unavailable("The tenant store was too slow; try again.")
    readings = tuple(map(Reading, limits, numbers[::2], numbers[1::2]))
    if len(limits) * 2 != len(numbers):
        raise ValueError(f"{len(numbers)} numbers of {len(limits)} limits")
    forbidding, stepping = (limits[number - 1] if number else None for number in (verdict, stepped))
    return Judgement(forbidding, wait_ms, readings, at, tokens, cost, rung - 1, stepping)


def exceeded(judgement: Judgement) -> LimitExceeded:
    """The error that a judgement's verdict means."""
    limit, wait_ms = judgement.forbidden_by, judgement.wait_ms
    assert limit is not None
    hopeless = wait_ms == NO_WAIT_HELPS
    retry_after = None if hopeless else max(1, math.ceil(wait_ms / 1000))
    whose = {"tenant": "", "key": " for this API key"}.get(
        limit.owner.kind, f" for {limit.owner.kind} {limit.owner.name}"
    )
    what = f"{limit.most} {limit.counter}"
    if limit.period == NOW:
        advice = "None may run." if hopeless else "Retry when one has ended."
        message = f"Concurrency limit reached: {limit.most} requests at a time{whose}. {advice}"
        return LimitExceeded(
            message, retry_after=retry_after, retry_soon=not hopeless, code="concurrency_limit_exceeded"
        )
    beyond = "This request alone is beyond it and can never fit; ask for less, trying again does not help."
    if limit.period == MINUTE:
        # Clients pass over a longer pause and come back sooner; a second of a minute may count for 61.
        retry_after = None if retry_after is None else min(MINUTE_S, retry_after)
        advice = beyond if hopeless else f"Try again in {retry_after} s."
        message = f"Rate limit reached: {what} per minute{whose}. {advice}"
        return LimitExceeded(message, retry_after=retry_after, retry_soon=not hopeless, code="rate_limit_exceeded")
    period, _, day = limit.period.partition("@")
    since = f" from day {day}" if day else ""
    kind, what = ("budget", spoken(limit.most)) if limit.counter is Counter.COST else ("quota", what)
    head = f"Beyond the {kind}" if hopeless else f"{kind.capitalize()} used up"
    advice = beyond if hopeless else f"Try again in {retry_after} s."
    message = f"{head}: {what} per {period}{since} (UTC){whose}. {advice}"
    return LimitExceeded(message, retry_after=retry_after, retry_soon=False, code=f"{kind}_exceeded")


def headers(judgement: Judgement) -> dict[str, str]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, for those limits that are set.

    Where several have one, such as a tenant and its key, the one with less left speaks.
    """
    fields: dict[str, str] = {}
    for counter in (Counter.REQUESTS, Counter.TOKENS):
        known = [r for r in judgement.readings if (r.limit.counter, r.limit.period) == (counter, MINUTE)]
        if known:
            tightest = min(known, key=lambda r: (r.left, r.limit.most))
            fields[f"x-ratelimit-limit-{counter}"] = str(tightest.limit.most)
            fields[f"x-ratelimit-remaining-{counter}"] = str(tightest.left)
            fields[f"x-ratelimit-reset-{counter}"] = duration(tightest.reset_ms)
    return fields


def remaining(judgement: Judgement) -> dict[str, float]:
    """What is left of each limit that is set, by its record's field: the least that any owner has left."""
    left: dict[str, float] = {}
    for reading in judgement.readings:
        left[reading.limit.field] = min(left.get(reading.limit.field, math.inf), float(reading.left))
    return left


def steps_down(ladder: Ladder, judgement: Judgement) -> int | None:
    """How many steps down the next answer is, by what is used of quotas and budgets; None: it would be refused."""
    ended = [reading for reading in judgement.readings if not reading.limit.is_rate]
    for down, percent in enumerate(ladder.percents):
        if percent is None or all(reading.used < reading.limit.most * percent // 100 for reading in ended):
            return down
    return None


def duration(milliseconds: int) -> str:
    """As OpenAI writes it: `12ms`, `17s`, `6m0s`; seconds are rounded up."""
    if milliseconds < 1000:
        return f"{max(0, milliseconds)}ms"
    seconds = math.ceil(milliseconds / 1000)
    return f"{seconds}s" if seconds < 60 else f"{seconds // 60}m{seconds % 60}s"
