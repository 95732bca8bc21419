"""Usage that an admin corrects or erases: audited, an event of its own kind, and exactly once."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day

from policies.errors import Unavailable
from tenants.admin.admin import TenantAdmin
from tenants.admin.settings import read_settings
from tenants.changes.audit import Entry
from tenants.changes.edits import AdminError, Conflict, Missing
from tenants.metering import meters
from tenants.metering.events import ADJUSTMENT
from tenants.metering.settlement import AMOUNTS, Answer, Settlement, Sold, State, answer_of, call
from tenants.metering.usage import read_usage
from tenants.records import keyspace
from tenants.records.schema import RecordError
from tenants.store import scripts
from tenants.store.store import TenantStore

MOST = 2**40
REACH_DAYS = 399
"""Days that a correction may lie back: so long usage is kept."""
PATIENCE_S = 10.0
"""How long an erase waits for requests that are under way."""
_ID = re.compile(r"[0-9a-f]{24}")
_LEVEL = re.compile(r"1(\.0{1,6})?|0\.\d{1,6}")
_SETTLE = scripts.load("metering/meters", "metering/settle")


@dataclass(frozen=True, slots=True)
class What:
    """The line of usage that is corrected; `tier` and `key` `-` are none's."""

    tenant: str
    day: date
    model: str
    level: str
    tier: str = "-"
    key: str = "-"


class _Adjustment(Settlement):
    """A settlement of no request."""

    note = ""

    def _event(self) -> dict[str, str | int]:
        return {**Settlement._event(self), "status": "adjusted", "kind": ADJUSTMENT, "note": self.note}


class Corrections:
    """What is done to usage. Methods raise AdminError, RecordError or Unavailable."""

    def __init__(self, store: TenantStore, admin: TenantAdmin) -> None:
        self._store, self._admin = store, admin

    async def adjust(self, what: What, amounts: Mapping[str, int], why: str, *, number: str = "") -> tuple[str, bool]:
        """Add amounts to a line of usage, below 0 to take away; the correction's id, and whether it was booked now.

        Args:
            why: for the audit log and for whoever imports the event.
            number: the id of a correction whose answer was lost: it is booked unless it was, within seven days.

        Raises:
            Conflict: there is less than is taken away.
        """
        _check(what, amounts, why, number)
        await self._check_left(what, amounts)
        if number and await self._store.execute("EXISTS", f"{keyspace.request(what.tenant)}:{number}"):
            return number, False
        number = number or secrets.token_hex(12)
        sold = Sold(
            what.tenant,
            what.key,
            what.model,
            what.tier,
            float(what.level),
            parts=await self._parts(what.key),
            periods=await self._periods(what.tenant),
        )
        own = _Adjustment(sold, number, _second(what.day), State.HELD)
        for name, amount in amounts.items():
            setattr(own, name, amount)
        own.note = why
        said = ", ".join(f"{name} {amount:+d}" for name, amount in amounts.items())
        line = f"{what.day} {sold.label}: {said} ({number}): {why}"
        await self._admin.log.append(Entry("usage adjust", what.tenant, detail=line))
        try:
            kept = await read_settings(self._store)
            answer = answer_of((await self._store.run(_SETTLE, *call([own], time.time(), kept)))[0])
        except Unavailable as error:
            raise Unavailable(
                f"It is not known whether the correction was booked ({error.message}); repeat it with --id {number},"
                " which books it once."
            ) from error
        return number, answer is Answer.BOOKED

    async def erase(self, tenant: str) -> dict[str, int]:
        """Erase a tenant: its record and keys, its usage, its events; how many of each.

        What stays: the audit log, whose lines prove one another; tombstones of settled requests (a number each, for
        seven days at most), without which one that is sent again would be booked again.

        Raises:
            Missing: there is nothing of it.
            Conflict: requests of it are still under way; it is deleted, and nobody begins new ones.
        """
        if not keyspace.is_name(tenant):
            raise AdminError(f"'{tenant}' is no tenant's id.", "tenant")
        digests = await self._admin.scan(keyspace.APIKEY, where=("tenant", tenant))
        keys = 0
        there = True
        try:
            keys = await self._admin.delete_tenant(tenant)
        except Missing:
            there = False
        await self._wait_for_the_last(tenant)
        entries = int(await self._store.execute("XLEN", keyspace.events(tenant)))
        names = [keyspace.events(tenant)] if entries else []
        for stem in (keyspace.usage, keyspace.window, keyspace.running, keyspace.reserved):
            names += [name async for name in self._store.scan(stem(tenant))]
        names += [keyspace.used(digest) for digest in digests]
        for name in names:
            await self._store.execute("DEL", name)
        erased = {"keys": keys, "counters": len(names), "events": entries}
        if not there and not names:
            raise Missing(f"There is no tenant '{tenant}', and nothing is left of one.")
        told = f"{keys} keys, {len(names)} counters, {entries} events; kept: the audit log"
        await self._admin.log.append(Entry("tenant erase", tenant, detail=told))
        return erased

    async def _wait_for_the_last(self, tenant: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while True:
            now = round(time.time() * 1000)
            running = await self._store.execute(
                "ZRANGE", keyspace.running(tenant), f"({now}", "+inf", "BYSCORE", "LIMIT", 0, 1
            )
            if not running:
                return
            if time.monotonic() > until:
                raise Conflict(
                    f"Requests of '{tenant}' are still under way; it is deleted and begins no new ones: run this again"
                    " when they have ended."
                )
            await asyncio.sleep(0.2)

    async def _check_left(self, what: What, amounts: Mapping[str, int]) -> None:
        (day,) = await read_usage(self._store, what.tenant, what.day.isoformat())
        line = [(f"{own.model}:{own.level}:{own.tier}:{own.key}", own.counts) for own in day.sold]
        counts = dict(line).get(f"{what.model}:{float(what.level):g}:{what.tier}:{what.key}", {})
        for name, amount in amounts.items():
            if counts.get(name, 0) + amount < 0:
                there = "; ".join(f"{label} {name}={own[name]}" for label, own in line if own[name]) or "nothing"
                raise Conflict(
                    f"{name}: {-amount} cannot be taken away, there are {counts.get(name, 0)} on {what.day}. That day"
                    f" (model:level:tier:key): {there}."
                )

    async def _parts(self, key: str) -> tuple[str, ...]:
        """The owners that have usage of their own."""
        with suppress(AdminError, RecordError):
            record = await self._admin.find_key(key)
            if any(getattr(record, field) is not None for field in meters.FIELDS):
                return ("", meters.Owner("key", record.id).part)
        return ("",)

    async def _periods(self, tenant: str) -> tuple[str, ...]:
        """The periods that its quotas have."""
        day = 1
        with suppress(AdminError, RecordError):
            record = await self._admin.tenant(tenant)
            tier = await self._admin.tier(record.tier)
            terms = [t for t in (record.overrides, tier.terms) if "billing_day" in t.model_fields_set]
            day = terms[0].billing_day if terms else 1
        return meters.ALWAYS if day == 1 else (*meters.ALWAYS, f"{meters.MONTH}@{day}")


def _second(day: date) -> int:
    """The unix second that a correction of a day is booked under."""
    return min(int(time.time()), round(datetime.combine(day, time_of_day(12), UTC).timestamp()))


def _check(what: What, amounts: Mapping[str, int], why: str, number: str) -> None:
    """Raises AdminError, which names the field."""
    today = datetime.now(UTC).date()
    unknown = sorted(set(amounts) - set(AMOUNTS))
    wrong = {
        "tenant": not keyspace.is_name(what.tenant) and "is no tenant's id",
        "day": not today - timedelta(days=REACH_DAYS) <= what.day <= today
        and f"must be today or one of the {REACH_DAYS} days before",
        "model": not keyspace.is_model(what.model) and "is no model's id",
        "level": not (_LEVEL.fullmatch(what.level) and float(what.level)) and "must be a level such as 0.9",
        "tier": what.tier != "-" and not keyspace.is_name(what.tier) and "is no tier's name",
        "key": what.key != "-" and not re.fullmatch(r"[0-9a-f]{12}", what.key) and "must be a key's id, 12 digits",
        "amounts": (not amounts or unknown)
        and f"must be some of {', '.join(AMOUNTS)}" + (f", not {unknown[0]}" if unknown else ""),
        "why": (not why.strip() or len(why) > 500 or not why.isprintable()) and "must say why, in one line of 500",
        "id": number and not _ID.fullmatch(number) and "must be 24 hex digits, as a correction was told",
    }
    for field, problem in wrong.items():
        if problem:
            raise AdminError(f"{field}: {problem}.", field)
    for name, amount in amounts.items():
        if not 0 < abs(amount) <= MOST:
            raise AdminError(f"{name}: must be a whole number other than 0, {MOST} at most.", name)
