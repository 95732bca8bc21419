"""Refused requests on their way to their tenants' usage, some at a time: a storm of them costs the store little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from policies.errors import Unavailable
from tenants.metering.settlement import DAY_S, today
from tenants.records import keyspace
from tenants.store.store import TenantStore

EVERY_S = 0.25


class Rejections:
    """Counts by tenant, part of an owner's names, and model. `due` is the loop time of the next sending."""

    def __init__(self, store: TenantStore) -> None:
        self.due = 0.0
        self._store = store
        self._counted: Counter[tuple[str, str, str]] = Counter()

    def __bool__(self) -> bool:
        return bool(self._counted)

    def add(self, tenant: str, parts: Iterable[str], model: str) -> None:
        """Count a refused request."""
        for part in parts:
            self._counted[tenant, part, model] += 1

    async def send(self, now: float, days: int) -> None:
        """Send what is counted, if due at loop time `now`, to be kept for `days`; what is not taken, again later."""
        if not self._counted or now < self.due:
            return
        counted, self._counted = self._counted, Counter()
        self.due = now + EVERY_S
        calls = [(own, command) for own, amount in counted.items() for command in _commands(*own, amount, days)]
        try:
            answers = await self._store.pipeline([command for _, command in calls], partial=True)
        except BaseException:
            self._counted.update(counted)
            raise
        for own in dict.fromkeys(own for (own, _), answer in zip(calls, answers, strict=True) if _unsent(answer)):
            self._counted[own] += counted[own]


def _commands(tenant: str, part: str, model: str, amount: int, days: int) -> list[tuple[str | int, ...]]:
    commands: list[tuple[str | int, ...]] = []
    for period in (today(), today()[:7]):
        key = f"{keyspace.usage(tenant)}{part}:{period}"
        commands += [("HINCRBY", key, field, amount) for field in ("rejected", f"rejected:{model}")]
        commands.append(("EXPIRE", key, days * DAY_S))
    return commands


def _unsent(answer: object) -> bool:
    """What may have arrived is not sent twice."""
    return isinstance(answer, Unavailable) and answer.__cause__ is None
