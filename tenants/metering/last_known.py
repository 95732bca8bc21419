"""What the store last said of a tenant's limits, for answers that need no admission: they cost the store nothing."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import replace

from tenants.live.entitlements import Entitlements
from tenants.metering.limits import Judgement, Reading

MOST = 20_000


class LastKnown:
    """The last judgement of each key's limits. Other gateways may have admitted requests since."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str, str], tuple[float, Judgement]] = OrderedDict()

    def tell(self, entitlements: Entitlements, judgement: Judgement) -> None:
        """Remember what an admission, or its refusal, was told."""
        key = _key(entitlements)
        self._known[key] = (time.monotonic(), judgement)
        self._known.move_to_end(key)
        if len(self._known) > MOST:
            self._known.popitem(last=False)

    def now(self, entitlements: Entitlements) -> Judgement | None:
        """The same, as it has aged: what was used is so until its minute is over. None where nothing is known."""
        then, judgement = self._known.get(_key(entitlements), (0.0, None))
        if judgement is None:
            return None
        age_ms = round((time.monotonic() - then) * 1000)
        return replace(judgement, readings=tuple(_aged(reading, age_ms) for reading in judgement.readings))


def _key(entitlements: Entitlements) -> tuple[str, str, str]:
    """By version: limits that have been edited are others."""
    return entitlements.tenant, entitlements.key_id, entitlements.version


def _aged(reading: Reading, age_ms: int) -> Reading:
    left_ms = reading.reset_ms - age_ms
    return reading._replace(used=reading.used if left_ms > 0 else 0, reset_ms=max(0, left_ms))
