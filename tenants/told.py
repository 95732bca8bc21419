"""What the store last said of a tenant's limits, for answers that need no admission: they cost the store nothing."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import replace

from tenants.entitlements import Entitlements
from tenants.limits import Judgement, Standing

MOST = 20_000


class Told:
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
        key = judgement.key and _aged(judgement.key, age_ms)
        return replace(judgement, tenant=_aged(judgement.tenant, age_ms), key=key)


def _key(entitlements: Entitlements) -> tuple[str, str, str]:
    """By version: limits that have been edited are others."""
    return entitlements.tenant, entitlements.key_id, entitlements.version


def _aged(standing: Standing, age_ms: int) -> Standing:
    requests, tokens = standing.requests_reset_ms - age_ms, standing.tokens_reset_ms - age_ms
    return replace(
        standing,
        requests_used=standing.requests_used if requests > 0 else 0,
        requests_reset_ms=max(0, requests),
        tokens_used=standing.tokens_used if tokens > 0 else 0,
        tokens_reset_ms=max(0, tokens),
    )
