"""Limits of one process, for while the store is away: each replica counts by itself, from what the store last said."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tenants.metering.limits import Judgement, Reading
from tenants.metering.meters import MINUTE, MINUTE_S, NOW, Counter, Limit, Meter, owners

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

    def start(self, tenant: str, limits: Sequence[Limit], amounts: Amounts, *, here: bool) -> None:
        """Count an admitted request; `here`: by this process's own judgement, of which the store knows nothing yet."""
        for owner in owners(limits):
            counts = self._counts(tenant, owner.part)
            bucket = counts.buckets.setdefault(int(time.monotonic()), {})
            for counter, amount in amounts.items():
                bucket[counter] = bucket.get(counter, 0) + amount
            if here:
                counts.add(amounts, 1)
            counts.running += 1

    def end(self, tenant: str, limits: Sequence[Limit], unused: Amounts, *, here: bool) -> None:
        """Count an admitted request's end; `unused` is given back to the periods' quotas, not to the minute."""
        for owner in owners(limits):
            counts = self._counts(tenant, owner.part)
            if here:
                counts.add(unused, -1)
            counts.running = max(0, counts.running - 1)

    def learn(self, tenant: str, judgement: Judgement) -> None:
        """Remember what the store says is used of periods: a quota that is used up stays so while the store is away."""
        now = time.monotonic()
        for reading in judgement.readings:
            if reading.limit.period not in (NOW, MINUTE):
                known = self._counts(tenant, reading.limit.owner.part).periods
                known[reading.limit.counter, reading.limit.period] = (reading.used, now + reading.reset_ms / 1000)

    def judge(
        self, tenant: str, limits: Sequence[Limit], meters: Sequence[Meter], *, surely: bool = False
    ) -> Judgement:
        """As `admit.lua` answers, without counting the request.

        Args:
            surely: refuse only what the store refuses too: it knows what was given back of quotas and reserved tokens,
                and its seconds begin at other times than this process's.
        """
        least = {meter.counter: meter.least for meter in meters}
        forbidden_by, wait_ms, readings = None, 0, []
        for limit in limits:
            counts = self._counts(tenant, limit.owner.part)
            reading = self._read(counts, limit, surely)
            readings.append(reading)
            uncertain = limit.counter is Counter.TOKENS or limit.period not in (NOW, MINUTE)
            wanted = 0 if surely and uncertain else least.get(limit.counter, 0)
            pause = self._pause_ms(counts, reading, wanted) if wanted else 0
            if wait_ms != -1 and (pause == -1 or pause > wait_ms):
                forbidden_by, wait_ms = limit, pause
        tokens = 0
        for meter in meters:
            if meter.counter is Counter.TOKENS:
                left = min((r.left for r in readings if r.limit.counter is Counter.TOKENS), default=meter.amount)
                tokens = max(meter.least, min(meter.amount, left))
        return Judgement(forbidden_by, wait_ms, tuple(readings), 0, tokens)

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
    def _pause_ms(counts: _Counts, reading: Reading, wanted: int) -> int:
        """Milliseconds until `wanted` fits, 0 where it does, -1 if it never will."""
        limit, surplus = reading.limit, reading.used + wanted - reading.limit.most
        if wanted > limit.most:
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
