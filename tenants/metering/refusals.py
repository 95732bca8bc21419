"""Refusals by the store, remembered: a storm of requests that are too many stays in the gateway that it met."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tenants.metering.limits import NO_WAIT_HELPS, Judgement
from tenants.metering.meters import MINUTE, MINUTE_S, NOW, Counter, Limit
from tenants.metering.wanted import Wanted

MOST = 20_000
GIVEN_BACK_S = 0.25
"""Where an end elsewhere, a correction or an admin may give something back, a refusal is believed so long."""
ENDED_S = 0.1
"""The same of requests at a time, which give back whenever one ends on another gateway."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Of requests that want `wanted` or more, of which `share` could be used at most (-1: no end).

    Times are monotonic seconds.
    """

    judgement: Judgement
    wanted: int
    share: int
    since: float
    until: float


class Refusals:
    """What the store refused, by tenant and limit: a limit that is edited is another, of which nothing is known.

    What nobody can give back is believed as long as it lasts: requests of a minute until one leaves it, and a request
    that alone is beyond its limit. Everything else for a moment: by so much may a client be refused that could go on.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, dict[Limit, _Refusal]] = OrderedDict()

    def learn(self, tenant: str, judgement: Judgement, wanted: Wanted) -> None:
        """Remember an answer of the store."""
        limit = judgement.forbidden_by
        if limit is None:
            return
        now = time.monotonic()
        until = now + _believed_s(limit, judgement)
        own = self._known.setdefault(tenant, {})
        # Of the limits as they were before an edit, nothing will ask again.
        for other in [other for other, refusal in own.items() if refusal.until <= now]:
            del own[other]
        own[limit] = _Refusal(judgement, wanted.least(limit), wanted.shares(limit)[-1], now, until)
        self._known.move_to_end(tenant)
        if len(self._known) > MOST:
            self._known.popitem(last=False)

    def ended(self, tenant: str) -> None:
        """A request of this process has ended: there is room for another."""
        if own := self._known.get(tenant):
            self._known[tenant] = {limit: refusal for limit, refusal in own.items() if limit.period != NOW}

    def settled(self, tenant: str) -> None:
        """A request of this process is booked: what it did not use is there again."""
        if own := self._known.get(tenant):
            self._known[tenant] = {limit: known for limit, known in own.items() if _lasts(limit, known.judgement)}

    def find(self, tenant: str, limits: Sequence[Limit], wanted: Wanted) -> Judgement | None:
        """What the store would say now, as far as that is known: the refusal with the longest wait."""
        own = self._known.get(tenant)
        if own is None:
            return None
        now, found = time.monotonic(), []
        for limit in limits:
            refusal = own.get(limit)
            if refusal is None:
                continue
            if now >= refusal.until:
                del own[limit]
            elif wanted.least(limit) >= refusal.wanted and wanted.shares(limit)[-1] == refusal.share:
                found.append(_aged(refusal.judgement, round((now - refusal.since) * 1000)))
        if not own:
            del self._known[tenant]
        if not found:
            return None
        # That no wait helps goes before every wait.
        hopeless = any(0 <= wanted.shares(limit)[-1] < wanted.least(limit) for limit in limits)
        fitting = (judgement for judgement in found if hopeless == (judgement.wait_ms == NO_WAIT_HELPS))
        return max(fitting, key=lambda judgement: judgement.wait_ms, default=None)


def _lasts(limit: Limit, judgement: Judgement) -> bool:
    """Whether nobody can give back what a request lacks."""
    beyond = judgement.wait_ms == NO_WAIT_HELPS
    return beyond or (limit.period == MINUTE and limit.counter is Counter.REQUESTS)


def _believed_s(limit: Limit, judgement: Judgement) -> float:
    if judgement.wait_ms == NO_WAIT_HELPS:
        return MINUTE_S
    if _lasts(limit, judgement):
        return judgement.wait_ms / 1000
    return min(judgement.wait_ms / 1000, ENDED_S if limit.period == NOW else GIVEN_BACK_S)


def _aged(judgement: Judgement, age_ms: int) -> Judgement:
    readings = tuple(r._replace(reset_ms=max(0, r.reset_ms - age_ms)) for r in judgement.readings)
    wait_ms = judgement.wait_ms if judgement.wait_ms == NO_WAIT_HELPS else max(1, judgement.wait_ms - age_ms)
    return replace(judgement, wait_ms=wait_ms, readings=readings)
