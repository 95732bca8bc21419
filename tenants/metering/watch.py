"""What a gateway's own requests show of quotas that come near their end and of keys that grow old.

An admission says what is used and reserved; an alert is raised by what is really used. So requests name the quotas that
may have passed a threshold, and every few seconds those few are read.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from policies.errors import Unavailable
from tenants.live.entitlements import Entitlements
from tenants.metering import alerts
from tenants.metering.limits import Judgement
from tenants.metering.meters import DAY, MONTH, Counter, Limit
from tenants.records import keyspace
from tenants.records.schema import RecordError
from tenants.records.settings import Settings
from tenants.store.store import TenantStore

logger = logging.getLogger(__name__)

MOST = 20_000
"""Quotas that are watched at a time, and keys that are remembered."""


@dataclass(slots=True)
class _Near:
    """A quota that may have passed a threshold.

    Attributes:
        ends: unix second at which its period ends.
        told: the highest threshold that is dealt with.
        refused: whether a request was refused for it, which waits for nothing but the period's end.
    """

    limit: Limit
    label: str
    ends: float
    told: int = 0
    refused: bool = False


class Watch:
    """Watches the quotas of a gateway's requests by day and by month, and its keys.

    Attributes:
        settings: of the installation.
    """

    def __init__(self, store: TenantStore, now: Callable[[], float] = time.time) -> None:
        self.settings = Settings()
        self._store = store
        self._now = now
        self._near: dict[tuple[str, str, str], _Near] = {}
        self._old: dict[str, tuple[Entitlements, float]] = {}
        self._told_keys: dict[str, str] = {}

    def observe(self, own: Entitlements, judgement: Judgement) -> None:
        """Look at an admission; asks no store."""
        for reading in judgement.readings:
            limit = reading.limit
            if 2 * reading.used >= limit.most > 0 and limit.period.partition("@")[0] in (DAY, MONTH):
                self._note(own.tenant, limit, reading.reset_ms, judgement)
        days = self.settings.key_max_age_days
        if days and own.key_created_at and self._now() - own.key_created_at > days * 86_400 and len(self._old) < MOST:
            if self._told_keys.get(own.key_id) != self._month():
                self._old[own.key_id] = (own, own.key_created_at)

    async def look(self) -> None:
        """Read what may have passed a threshold, and raise what has. Raises Unavailable."""
        now = self._now()
        self._near = {name: near for name, near in self._near.items() if near.ends > now}
        for (tenant, _, _), near in [*self._near.items()]:
            if near.told < alerts.THRESHOLDS[-1]:
                await self._judge(tenant, near, now)
        for key_id, (own, created_at) in [*self._old.items()]:
            days = self.settings.key_max_age_days
            if days:
                await self._raise(alerts.rotation_due(own.tenant, key_id, own.key_prefix, created_at, days))
            if len(self._told_keys) >= MOST:
                self._told_keys.clear()
            self._told_keys[key_id] = self._month()
            del self._old[key_id]

    def _month(self) -> str:
        return datetime.fromtimestamp(self._now(), UTC).strftime("%Y-%m")

    def _note(self, tenant: str, limit: Limit, reset_ms: int, judgement: Judgement) -> None:
        name = (tenant, limit.owner.part, f"{limit.field}:{limit.period}")
        near = self._near.get(name)
        if near is None or near.limit.most != limit.most or near.ends <= self._now():
            if near is None and len(self._near) >= MOST:
                return
            at = judgement.at or self._now()
            near = self._near[name] = _Near(limit, label(limit.period, at), at + reset_ms / 1000)
        if judgement.forbidden_by == limit and judgement.wait_ms > 0:
            near.refused = True

    async def _judge(self, tenant: str, near: _Near, now: float) -> None:
        used, reserved = await self._read(tenant, near)
        limit = near.limit
        # Refused although nothing is under way that could give something back: what is left is of no use to anybody.
        percent = 100 if near.refused and not reserved else math.floor(100 * used / limit.most)
        near.refused = near.refused and reserved > 0
        for threshold in alerts.THRESHOLDS:
            if near.told < threshold <= percent:
                again = math.ceil(near.ends - now) + 86_400
                await self._raise(alerts.threshold(tenant, limit, near.label, threshold, used, again))
                near.told = threshold

    async def _read(self, tenant: str, near: _Near) -> tuple[int, int]:
        """What is used of a quota, and what is reserved beside that."""
        owner, counter = near.limit.owner, near.limit.counter
        names = FIELDS.get(counter, (counter.value,))
        usage = f"{keyspace.usage(tenant)}{'' if owner.suffix else owner.part}:{near.label}"
        answers = await self._store.pipeline(
            [
                ("HMGET", usage, *(name + owner.suffix for name in names)),
                ("HMGET", f"{keyspace.reserved(tenant)}{owner.part}", counter.value),
            ]
        )
        used, reserved = (_sum(answer) for answer in answers)
        return used, reserved

    async def _raise(self, alert: alerts.Alert) -> None:
        try:
            if await alerts.raise_alert(self._store, alert):
                logger.info("alert: %s", alert.subject)
        except RecordError as error:
            logger.error("an alert is raised and sent to nobody: %s", error)
            raise Unavailable("webhooks are broken") from error


FIELDS = {Counter.TOKENS: ("tokens_in", "tokens_out")}
"""The fields of usage that a counter is the sum of, where it is not its own."""


def label(period: str, at: float) -> str:
    """The name of the day, or of the month from its `@<day>` on, of a unix second, as in `meters.lua`."""
    moment = datetime.fromtimestamp(at, UTC)
    kind, _, begins = period.partition("@")
    if kind == DAY:
        return moment.strftime("%Y-%m-%d")
    first = int(begins or 1)
    year, month = moment.year, moment.month
    if moment.day < first:
        year, month = (year, month - 1) if month > 1 else (year - 1, 12)
    return f"{year:04d}-{month:02d}" + (f"@{first:02d}" if first > 1 else "")


def _sum(answer: Any) -> int:
    """A counter that is none counts nothing here: whoever admits says what is wrong with it."""
    if not isinstance(answer, list):
        return 0
    return sum(int(value) for value in answer if value is not None and value.lstrip(b"-").isdigit())
