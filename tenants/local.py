"""Limits of one process, for while the store is away: rate and concurrency hold per replica, quotas not at all."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from tenants.entitlements import Entitlements
from tenants.limits import WINDOW_S, Judgement, Standing, scopes
from tenants.records import LimitFields

MAX_COUNTS = 20_000


@dataclass(slots=True)
class _Counts:
    """Buckets of one tenant or key, second to [requests, tokens], and the running requests."""

    buckets: dict[int, list[int]] = field(default_factory=dict)
    running: int = 0


class LocalLimits:
    """Counts what this process admitted, always, so that an outage does not begin with a fresh minute for everyone."""

    def __init__(self) -> None:
        self._all: OrderedDict[tuple[str, str], _Counts] = OrderedDict()

    def start(self, entitlements: Entitlements, requests: int, tokens: int) -> None:
        """Count an admitted request."""
        for key_id, _ in scopes(entitlements):
            counts = self._counts(entitlements.tenant, key_id)
            bucket = counts.buckets.setdefault(int(time.monotonic()), [0, 0])
            bucket[0] += requests
            bucket[1] += tokens
            counts.running += 1

    def end(self, entitlements: Entitlements) -> None:
        """Count an admitted request's end."""
        for key_id, _ in scopes(entitlements):
            counts = self._counts(entitlements.tenant, key_id)
            counts.running = max(0, counts.running - 1)

    def judge(self, entitlements: Entitlements, requests: int, tokens: int, *, surely: bool = False) -> Judgement:
        """As `admit.lua` answers, without quotas and without counting the request.

        Args:
            surely: refuse only what the store refuses too: it knows what was given back of tokens that were reserved,
                and its seconds begin at other times than this process's.
        """
        verdict, of_key, wait_ms = "", False, 0
        standings = []
        for key_id, limits in scopes(entitlements):
            counts = self._counts(entitlements.tenant, key_id)
            name, wait, standing = self._judge(counts, limits, requests, tokens, surely)
            if name and not verdict:
                verdict, of_key, wait_ms = name, bool(key_id), wait
            standings.append(standing)
        return Judgement(verdict, of_key, wait_ms, standings[0], standings[1] if len(standings) > 1 else None)

    def _judge(
        self, counts: _Counts, limits: LimitFields, requests: int, tokens: int, surely: bool
    ) -> tuple[str, int, Standing]:
        now = time.monotonic()
        oldest = int(now) - WINDOW_S if surely else -1
        used = [sum(bucket[i] for at, bucket in counts.buckets.items() if at > oldest) for i in (0, 1)]
        reset_ms = math.ceil((max(counts.buckets) + WINDOW_S + 1 - now) * 1000) if counts.buckets else 0
        standing = Standing(used[0], reset_ms, used[1], reset_ms, counts.running)
        tpm = None if surely else limits.tpm
        for i, (name, limit, amount) in enumerate((("rpm", limits.rpm, requests), ("tpm", tpm, tokens))):
            if limit is not None and used[i] + amount > limit:
                wait = self._wait_ms(counts, i, used[i] + amount - limit, now) if amount <= limit else -1
                return name, wait, standing
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

    def _counts(self, tenant: str, key_id: str) -> _Counts:
        counts = self._all.get((tenant, key_id))
        if counts is None:
            counts = self._all[tenant, key_id] = _Counts()
            if len(self._all) > MAX_COUNTS:
                self._forget_one()
        self._all.move_to_end((tenant, key_id))
        oldest = int(time.monotonic()) - WINDOW_S
        while counts.buckets and (first := next(iter(counts.buckets))) < oldest:
            del counts.buckets[first]
        return counts

    def _forget_one(self) -> None:
        for name, counts in self._all.items():
            if not counts.running:
                del self._all[name]
                return
