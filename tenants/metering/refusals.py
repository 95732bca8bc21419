"""Refusals by the store, remembered: a storm of requests that are too many stays in the gateway that it met."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tenants.metering.limits import NO_WAIT_HELPS, Judgement
from tenants.metering.meters import MINUTE, MINUTE_S, NOW, Counter, Limit, Meter

MOST = 20_000
GIVEN_BACK_S = 0.25
"""Where an end elsewhere, a correction or an admin may give something back, a refusal is believed so long."""
ENDED_S = 0.1
"""The same of requests at a time, which give back whenever one ends on another gateway."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Of requests that want `wanted` or more of the limit's counter; times are monotonic seconds."""

    judgement: Judgement
    wanted: int
    since: float
    until: float


class Refusals:
    """What the store refused, by tenant and limit: a limit that is edited is another, of which nothing is known.

    What nobody can give back is believed as long as it lasts: requests of a minute until one leaves it, and a request
    that alone is beyond its limit. Everything else for a moment: by so much may a client be refused that could go on.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, Limit], _Refusal] = OrderedDict()

    def learn(self, tenant: str, judgement: Judgement, meters: Iterable[Meter]) -> None:
        """Remember an answer of the store to a request with these meters."""
        limit = judgement.forbidden_by
        if limit is None or not (wanted := _least(meters).get(limit.counter, 0)):
            return
        now = time.monotonic()
        self._known[tenant, limit] = _Refusal(judgement, wanted, now, now + _believed_s(limit, judgement.wait_ms))
        self._known.move_to_end((tenant, limit))
        if len(self._known) > MOST:
            self._known.popitem(last=False)

    def ended(self, tenant: str, limits: Iterable[Limit]) -> None:
        """A request of this process has ended: there is room for another."""
        for limit in limits:
            if limit.counter is Counter.RUNNING:
                self._known.pop((tenant, limit), None)

    def find(self, tenant: str, limits: Sequence[Limit], meters: Iterable[Meter]) -> Judgement | None:
        """What the store would say now, as far as that is known: the refusal with the longest wait."""
        known = [(limit, refusal) for limit in limits if (refusal := self._known.get((tenant, limit))) is not None]
        if not known:
            return None
        least, now, found = _least(meters), time.monotonic(), []
        # That no wait helps goes before every wait.
        hopeless = any(least.get(limit.counter, 0) > limit.most for limit in limits)
        for limit, refusal in known:
            if now >= refusal.until:
                del self._known[tenant, limit]
            elif least.get(limit.counter, 0) >= refusal.wanted and hopeless == (refusal.judgement.wait_ms < 0):
                found.append(_aged(refusal.judgement, round((now - refusal.since) * 1000)))
        return max(found, key=lambda judgement: judgement.wait_ms, default=None)


def _least(meters: Iterable[Meter]) -> Mapping[Counter, int]:
    return {meter.counter: meter.least for meter in meters}


def _believed_s(limit: Limit, wait_ms: int) -> float:
    if wait_ms == NO_WAIT_HELPS:
        return MINUTE_S
    if limit.period == MINUTE and limit.counter is Counter.REQUESTS:
        return wait_ms / 1000
    return min(wait_ms / 1000, ENDED_S if limit.period == NOW else GIVEN_BACK_S)


def _aged(judgement: Judgement, age_ms: int) -> Judgement:
    readings = tuple(replace(r, reset_ms=max(0, r.reset_ms - age_ms)) for r in judgement.readings)
    wait_ms = judgement.wait_ms if judgement.wait_ms == NO_WAIT_HELPS else max(1, judgement.wait_ms - age_ms)
    return replace(judgement, wait_ms=wait_ms, readings=readings)
