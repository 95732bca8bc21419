"""Limits of one process, for while the store is away: each replica counts by itself, from what the store last said."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tenants.metering.limits import Judgement, Reading
from tenants.metering.meters import MINUTE, MINUTE_S, NOW, Counter, HeldTo, Limit, Meter
from tenants.metering.wanted import Wanted

MAX_COUNTS = 20_000
Amounts = Mapping[Counter, int]


@dataclass(slots=True)
class _Counts:
    """Of one owner: amounts by second of this process's clock, running requests, and periods as the store last told.

    A period is what was used of it and when it ends.
    """

    buckets: dict[int, dict[Counter, int]] = field(default_factory=dict)
    running: int = 0
    periods: dict[tuple[Counter, str], tuple[int, float]] = field(default_factory=dict)

    def add(self, amounts: Amounts, sign: int) -> None:
        """Count amounts in every period that is known."""
        for (counter, period), (used, until) in self.periods.items():
            self.periods[counter, period] = (used + sign * amounts.get(counter, 0), until)


class LocalLimits:
    """Counts what this process admitted, always, so that an outage does not begin with a fresh minute for everyone."""

    def __init__(self) -> None:
        self._all: OrderedDict[tuple[str, str], _Counts] = OrderedDict()

    def start(self, tenant: str, limits: HeldTo, amounts: Amounts, *, here: bool) -> None:
        """Count an admitted request; `here`: by this process's own judgement, of which the store knows nothing yet."""
        for owner in limits.owners:
            counts = self._counts(tenant, owner.part)
            bucket = counts.buckets.setdefault(int(time.monotonic()), {})
            for counter, amount in amounts.items():
                bucket[counter] = bucket.get(counter, 0) + amount
            if here:
                counts.add(amounts, 1)
            counts.running += 1

    def end(self, tenant: str, limits: HeldTo, unused: Amounts, *, here: bool) -> None:
        """Count an admitted request's end; `unused` is given back to the periods' quotas, not to the minute."""
        for owner in limits.owners:
            counts = self._counts(tenant, owner.part)
            if here:
                counts.add(unused, -1)
            counts.running = max(0, counts.running - 1)

    def learn(self, tenant: str, judgement: Judgement) -> None:
        """Remember what the store says is used of periods: a quota that is used up stays so while the store is away."""
        now, part, known = time.monotonic(), None, {}
        for reading in judgement.readings:
            if not reading.limit.is_rate:
                if reading.limit.owner.part != part:
                    part = reading.limit.owner.part
                    known = self._counts(tenant, part).periods
                known[reading.limit.counter, reading.limit.period] = (reading.used, now + reading.reset_ms / 1000)

    def judge(self, tenant: str, limits: Sequence[Limit], wanted: Wanted, *, surely: bool = False) -> Judgement:
        """As `admit.lua` answers, without counting the request.

        Args:
            surely: refuse only what the store refuses too: it knows what was given back of quotas and reserved tokens,
                and its seconds begin at other times than this process's.
        """
        counts = [self._counts(tenant, limit.owner.part) for limit in limits]
        readings = [self._read(own, limit, surely) for own, limit in zip(counts, limits, strict=True)]
        shares, costs = [wanted.shares(limit) for limit in limits], wanted.costs()
        least = {meter.counter: meter.least for meter in wanted.meters()}

        def pause_of(i: int, rung: int) -> int:
            limit, most = limits[i], shares[i][rung]
            uncertain = limit.counter is Counter.TOKENS or not limit.is_rate
            asked = costs[rung].least if limit.counter is Counter.COST else least[limit.counter]
            return 0 if most < 0 or (surely and uncertain) else self._pause_ms(counts[i], readings[i], asked, most)

        rung, stepped_by = 0, None
        for at in range(len(costs) - 1):
            lacks = next((limit for i, limit in enumerate(limits) if not limit.is_rate and pause_of(i, at)), None)
            if lacks is None:
                break
            rung, stepped_by = at + 1, lacks
        forbidden_by, wait_ms = None, 0
        for i, limit in enumerate(limits):
            pause = pause_of(i, rung)
            if wait_ms != -1 and (pause == -1 or pause > wait_ms):
                forbidden_by, wait_ms = limit, pause
        tokens, cost = _granted(wanted, costs[rung], readings, [share[rung] for share in shares])
        return Judgement(forbidden_by, wait_ms, tuple(readings), 0, tokens, cost, rung, stepped_by)

    @staticmethod
    def _read(counts: _Counts, limit: Limit, surely: bool) -> Reading:
        now = time.monotonic()
        if limit.period == NOW:
            return Reading(limit, counts.running, 0)
        if limit.period == MINUTE:
            oldest = int(now) - MINUTE_S if surely else -1
            used = sum(bucket.get(limit.counter, 0) for second, bucket in counts.buckets.items() if second > oldest)
            reset = max(counts.buckets) + MINUTE_S + 1 - now if counts.buckets else 0.0
            return Reading(limit, used, math.ceil(reset * 1000))
        used, until = counts.periods.get((limit.counter, limit.period), (0, now))
        return Reading(limit, used if now < until else 0, max(0, math.ceil((until - now) * 1000)))

    @staticmethod
    def _pause_ms(counts: _Counts, reading: Reading, wanted: int, most: int) -> int:
        """Milliseconds until `wanted` fits within `most`, 0 where it does, -1 if it never will."""
        limit, surplus = reading.limit, reading.used + wanted - most
        if not wanted:
            return 0
        if wanted > most:
            return -1
        if surplus <= 0:
            return 0
        if limit.period == NOW:
            return 1000
        if limit.period != MINUTE:
            return reading.reset_ms
        wait, now = 0.0, time.monotonic()
        for second in sorted(counts.buckets):
            surplus -= counts.buckets[second].get(limit.counter, 0)
            wait = second + MINUTE_S + 1 - now
            if surplus <= 0:
                break
        return math.ceil(wait * 1000)

    def _counts(self, tenant: str, part: str) -> _Counts:
        counts = self._all.get((tenant, part))
        if counts is None:
            counts = self._all[tenant, part] = _Counts()
            if len(self._all) > MAX_COUNTS:
                self._forget_one()
        self._all.move_to_end((tenant, part))
        oldest = int(time.monotonic()) - MINUTE_S
        while counts.buckets and (first := next(iter(counts.buckets))) < oldest:
            del counts.buckets[first]
        return counts

    def _forget_one(self) -> None:
        for name, counts in self._all.items():
            if not counts.running:
                del self._all[name]
                return


def _granted(wanted: Wanted, cost: Meter, readings: Sequence[Reading], shares: Sequence[int]) -> tuple[int, int]:
    """The tokens and the money that are reserved, as `admit.lua` reserves them."""
    tokens, money, spare = wanted.tokens.most, cost.amount, wanted.tokens.least
    for reading, most in zip(readings, shares, strict=True):
        left = (reading.limit.most if most < 0 else most) - reading.used
        if reading.limit.counter is Counter.TOKENS and most >= 0:
            tokens = min(tokens, max(left, spare))
        elif reading.limit.counter is Counter.COST:
            if 0 <= most and left < cost.amount:
                more = (left - cost.least - 1) * (wanted.tokens.most - spare) // (cost.amount - cost.least + 1)
                tokens = min(tokens, spare + max(0, more))
            money = min(money, max(0, left))
    return tokens, money
