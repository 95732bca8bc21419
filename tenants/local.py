"""Limits of one process, for while the store is away: rate and concurrency hold per replica, quotas not at all."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from tenants.entitlements import Limits
from tenants.limits import WINDOW_S, Standing

MAX_TENANTS = 10_000


@dataclass(slots=True)
class _Counts:
    """One tenant's buckets, second to [requests, tokens], and its running requests."""

    buckets: dict[int, list[int]] = field(default_factory=dict)
    running: int = 0


class LocalLimits:
    """Counts what this process admitted, always, so that an outage does not begin with a fresh minute for everyone."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, _Counts] = OrderedDict()

    def start(self, tenant: str, requests: int, tokens: int) -> None:
        """Count an admitted request."""
        counts = self._counts(tenant)
        bucket = counts.buckets.setdefault(int(time.monotonic()), [0, 0])
        bucket[0] += requests
        bucket[1] += tokens
        counts.running += 1

    def end(self, tenant: str) -> None:
        """Count an admitted request's end."""
        counts = self._counts(tenant)
        counts.running = max(0, counts.running - 1)

    def judge(self, tenant: str, limits: Limits, requests: int, tokens: int) -> tuple[str, int, Standing]:
        """As `admit.lua` answers, without quotas and without counting the request."""
        counts, now = self._counts(tenant), time.monotonic()
        used = [sum(bucket[i] for bucket in counts.buckets.values()) for i in (0, 1)]
        reset_ms = math.ceil((max(counts.buckets, default=now) + WINDOW_S + 1 - now) * 1000) if counts.buckets else 0
        standing = Standing(used[0], reset_ms, used[1], reset_ms, counts.running)
        for i, (name, limit, amount) in enumerate((("rpm", limits.rpm, requests), ("tpm", limits.tpm, tokens))):
            if limit is not None and used[i] + amount > limit:
                return (
                    name,
                    self._wait_ms(counts, i, used[i] + amount - limit, now) if amount <= limit else -1,
                    standing,
                )
        if limits.concurrency is not None and counts.running >= limits.concurrency:
            return "concurrency", 1000 if limits.concurrency else -1, standing
        return "", 0, standing

    @staticmethod
    def _wait_ms(counts: _Counts, which: int, surplus: int, now: float) -> int:
        """Milliseconds until `surplus` has left the window."""
        wait = 0.0
        for second in sorted(counts.buckets):
            surplus -= counts.buckets[second][which]
            wait = second + WINDOW_S + 1 - now
            if surplus <= 0:
                break
        return math.ceil(wait * 1000)

    def _counts(self, tenant: str) -> _Counts:
        counts = self._tenants.get(tenant)
        if counts is None:
            counts = self._tenants[tenant] = _Counts()
            if len(self._tenants) > MAX_TENANTS:
                self._forget_one()
        self._tenants.move_to_end(tenant)
        oldest = int(time.monotonic()) - WINDOW_S
        while counts.buckets and (first := next(iter(counts.buckets))) < oldest:
            del counts.buckets[first]
        return counts

    def _forget_one(self) -> None:
        for tenant, counts in self._tenants.items():
            if not counts.running:
                del self._tenants[tenant]
                return
