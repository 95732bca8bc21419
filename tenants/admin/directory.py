"""What there is: tiers, tenants and keys, read from the store in pages and by name."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import TypeVar

from policies.terms import round_level
from tenants.changes import index
from tenants.changes.edits import AdminError, Found, Missing, read, read_many
from tenants.records import keyspace, schedule
from tenants.records.fields import parse_moment
from tenants.records.hashes import RawHash, parse_key, parse_project, parse_tenant, parse_tier
from tenants.records.ladders import levels_of
from tenants.records.prices import parse_plan
from tenants.records.schema import KeyRecord, ProjectRecord, RecordError, TenantRecord, TierRecord
from tenants.records.settings import parse_settings
from tenants.store.store import READ_BATCH, TenantStore

Record = TypeVar("Record")
_ID = re.compile(r"[0-9a-f]{8,64}")
_LADDERS = ("when_exhausted", "when_busy")
_NO_KEY = "There is no such key; `tenants key list <tenant>` shows ids and prefixes."


class Directory:
    """Reads records. Methods raise AdminError (there is none), RecordError (key and field) or Unavailable."""

    def __init__(self, store: TenantStore) -> None:
        self._store = store

    async def tier(self, name: str) -> TierRecord:
        """One tier."""
        return parse_tier(name, await self._record(keyspace.tier(name)))

    async def tenant(self, tenant_id: str) -> TenantRecord:
        """One tenant."""
        return parse_tenant(tenant_id, await self._record(keyspace.tenant(tenant_id)))

    async def project(self, name: str) -> ProjectRecord:
        """One project."""
        return parse_project(name, await self._record(keyspace.project(name)))

    async def projects(self, names: Sequence[str] | None = None) -> dict[str, ProjectRecord | RecordError]:
        """All projects, or those named, by id; one that does not validate is its error."""
        wanted = await self.names(keyspace.PROJECT) if names is None else names
        return await self._all(keyspace.PROJECT, parse_project, wanted)

    async def found(self, key: str) -> Found:
        """A record as it stands, with its version. Raises Missing where there is none."""
        found = await read(self._store, key)
        if not found.raw and found.is_hash:
            raise Missing(_missing(key))
        return found

    async def all_found(self, prefix: str) -> list[Found]:
        """Every record under a prefix of `keyspace`, by a scan: what was written by hand counts too."""
        keys = [prefix + name for name in await self.scan(prefix)]
        pages = [keys[start : start + READ_BATCH] for start in range(0, len(keys), READ_BATCH)]
        return [found for page in pages for found in await read_many(self._store, page)]

    async def tiers(self, names: Sequence[str] | None = None) -> dict[str, TierRecord | RecordError]:
        """All tiers, or those named, by name; one that does not validate is its error."""
        return await self._all(keyspace.TIER, parse_tier, await self.names(keyspace.TIER) if names is None else names)

    async def tenants(self, ids: Sequence[str] | None = None) -> dict[str, TenantRecord | RecordError]:
        """All tenants, or those named, by id; one that does not validate is its error."""
        return await self._all(keyspace.TENANT, parse_tenant, await self.names(keyspace.TENANT) if ids is None else ids)

    async def keys(self, tenant_id: str) -> dict[str, KeyRecord | RecordError]:
        """A tenant's keys by hash; one that does not validate, or names another tenant since, is its error."""
        keys = await index.belonging(self._store, keyspace.tenant(tenant_id))
        found = await self._all(keyspace.APIKEY, parse_key, [key.removeprefix(keyspace.APIKEY) for key in keys])
        for digest, own in found.items():
            if isinstance(own, KeyRecord) and own.tenant != tenant_id:
                found[digest] = RecordError(keyspace.apikey(digest), "tenant", f"names '{own.tenant}' by now")
        notes = await self._used(found)
        return {
            d: own.model_copy(update=note) if isinstance(own, KeyRecord) else own
            for (d, own), note in zip(found.items(), notes, strict=True)
        }

    async def find_key(self, reference: str) -> KeyRecord:
        """The key with this id (8 digits or more), prefix (`sk-acme-…abcd`) or secret."""
        digest = await self.find_digest(reference)
        return parse_key(digest, await self._record(keyspace.apikey(digest)))

    async def find_digest(self, reference: str) -> str:
        """The hash of the key of a reference, whether its record validates or not."""
        wanted = reference.replace("...", "…")
        if "…" in wanted:
            found = await self._with_prefix(wanted)
        elif _ID.fullmatch(wanted):
            # One that was written by hand is not in the index.
            found = await self.names(keyspace.APIKEY, wanted) or await self.scan(keyspace.APIKEY, wanted)
        else:
            digest = keyspace.key_digest(reference)
            found = [digest] if await self._store.execute("EXISTS", keyspace.apikey(digest)) else []
        if not found:
            raise Missing(_NO_KEY)
        if len(found) > 1:
            raise AdminError(f"{len(found)} keys match; name one by its id: {', '.join(d[:12] for d in found)}.")
        return found[0]

    async def _with_prefix(self, prefix: str) -> list[str]:
        tenant = prefix.partition("…")[0].removeprefix("sk-").removesuffix("-")
        keys = await index.belonging(self._store, keyspace.tenant(tenant))
        raws = await self._store.try_hashes(keys)
        pairs = [(key, raw) for key, raw in zip(keys, raws, strict=True) if not isinstance(raw, RecordError)]
        found = [key.removeprefix(keyspace.APIKEY) for key, raw in pairs if raw.get(b"prefix") == prefix.encode()]
        return found or await self.scan(keyspace.APIKEY, where=("prefix", prefix))

    async def check(self) -> list[RecordError]:
        """Everything that does not validate or leads nowhere, in the order of its keys."""
        names = {kind: set(await self.scan(kind)) for kind in (keyspace.TIER, keyspace.PROJECT, keyspace.TENANT)}
        problems: list[RecordError] = []

        def leads(key: str, field: str, kind: str, name: str) -> None:
            if name and name not in names[kind]:
                problems.append(RecordError(key, field, f"there is no {kind.rstrip(':')} '{name}'"))

        plans = await self._plans(problems)
        of_projects = self._each(keyspace.PROJECT, names[keyspace.PROJECT], parse_project)
        problems += [own async for own in of_projects if isinstance(own, RecordError)]
        async for tier in self._each(keyspace.TIER, names[keyspace.TIER], parse_tier):
            if isinstance(tier, RecordError):
                problems.append(tier)
            else:
                problems += _unplanned(plans, keyspace.tier(tier.name), tier.terms.plan, tier.scheduled)
        async for tenant in self._each(keyspace.TENANT, names[keyspace.TENANT], parse_tenant):
            if isinstance(tenant, RecordError):
                problems.append(tenant)
                continue
            problems += _unplanned(plans, keyspace.tenant(tenant.id), tenant.overrides.plan, tenant.scheduled)
            leads(keyspace.tenant(tenant.id), "project", keyspace.PROJECT, tenant.project)
            for field, value in {"tier": tenant.tier, **tenant.scheduled}.items():
                if schedule.sets(field) == "tier":
                    leads(keyspace.tenant(tenant.id), field, keyspace.TIER, value)
        async for key in self._each(keyspace.APIKEY, await self.scan(keyspace.APIKEY), parse_key):
            if isinstance(key, RecordError):
                problems.append(key)
                continue
            leads(keyspace.apikey(key.digest), "tenant", keyspace.TENANT, key.tenant)
            leads(keyspace.apikey(key.digest), "project", keyspace.PROJECT, key.project)
        return sorted(problems, key=lambda problem: (problem.key, problem.field))

    async def old_keys(self) -> list[RecordError]:
        """Keys that are older than the installation's `key_max_age_days`, in the order of their names."""
        days = parse_settings((await self._store.hashes(keyspace.SETTINGS))[0]).key_max_age_days
        found = list[RecordError]()
        if days is None:
            return found
        async for key in self._each(keyspace.APIKEY, await self.scan(keyspace.APIKEY), parse_key):
            if isinstance(key, KeyRecord) and key.old(time.time(), days):
                problem = f"is {key.age_days(time.time())} days old, more than {days}: tenants key rotate {key.id}"
                found.append(RecordError(keyspace.apikey(key.digest), "created_at", problem))
        return found

    async def _plans(self, problems: list[RecordError]) -> set[str]:
        """The versions of plans that there are; those that do not validate are problems."""
        plans = set(await self.scan(keyspace.PLAN))
        problems += [
            plan async for plan in self._each(keyspace.PLAN, plans, parse_plan) if isinstance(plan, RecordError)
        ]
        return plans

    async def levels(self, model: str) -> set[float]:
        """The levels below 1.0 at which tiers and tenants have a model, or step down to. Only that is read of a record.

        What does not validate names none.
        """
        found: set[float] = set()
        for prefix in (keyspace.TIER, keyspace.TENANT):
            names = await self.scan(prefix)
            for start in range(0, len(names), READ_BATCH):
                page = names[start : start + READ_BATCH]
                fields = (f"utility:{model}", "utility", *_LADDERS)
                reads = [("HMGET", prefix + name, *fields) for name in page]
                answers = await self._store.pipeline(reads)
                rows = [answer for answer in answers if isinstance(answer, list)]
                found |= {level for row in rows if (level := _level(row[:2])) is not None}
                ladders = [text.decode("utf-8", "replace") for row in rows for text in row[2:] if text is not None]
                found |= {level for text in ladders for level in levels_of(text)}
        return found

    async def names(self, prefix: str, beginning: str = "") -> list[str]:
        """What the index has under a prefix of `keyspace`, sorted; only names with that beginning."""
        return (await self.page(prefix, beginning=beginning))[0]

    async def page(
        self, prefix: str, *, beginning: str = "", after: str = "", limit: int | None = None
    ) -> tuple[list[str], int]:
        """As `names`, at most `limit` of them behind the name `after`, and how many more there are."""
        behind = prefix + after if after else ""
        keys, left = await index.beginning(self._store, prefix + beginning, after=behind, limit=limit)
        return [key.removeprefix(prefix) for key in keys], left

    async def scan(self, prefix: str, beginning: str = "", where: tuple[str, str] | None = None) -> list[str]:
        """As `names`, by a walk through the whole keyspace, which finds what was written by hand too.

        Args:
            where: only records with this field and value.
        """
        return sorted({key.removeprefix(prefix) async for key in self._store.scan(prefix + beginning, where)})

    async def _record(self, key: str) -> RawHash:
        raw = (await self._store.hashes(key))[0]
        if not raw:
            raise Missing(_missing(key))
        return raw

    async def _each(
        self, prefix: str, names: Collection[str], parse: Callable[[str, RawHash], Record]
    ) -> AsyncIterator[Record | RecordError]:
        """Records one after another, never more than a page of them in memory; those that are gone are left out."""
        ordered = sorted(names)
        for start in range(0, len(ordered), READ_BATCH):
            for record in (await self._all(prefix, parse, ordered[start : start + READ_BATCH])).values():
                yield record

    async def _all(
        self, prefix: str, parse: Callable[[str, RawHash], Record], names: Sequence[str]
    ) -> dict[str, Record | RecordError]:
        found: dict[str, Record | RecordError] = {}
        for name, raw in zip(names, await self._store.try_hashes([prefix + name for name in names]), strict=True):
            try:
                if isinstance(raw, RecordError):
                    raise raw
                if raw:
                    found[name] = parse(name, raw)
            except RecordError as error:
                found[name] = error
        return found

    async def _used(self, digests: Collection[str]) -> list[dict[str, float]]:
        texts = await self._store.pipeline([("GET", keyspace.used(digest)) for digest in digests]) if digests else []
        return [{"last_used": parse_moment(text.decode())} if isinstance(text, bytes) else {} for text in texts]


def _unplanned(plans: set[str], key: str, own: str | None, scheduled: Mapping[str, str]) -> list[RecordError]:
    """Fields of a record that name a version of a plan that there is not, now or later."""
    named = {**({"plan": own} if own else {}), **scheduled}
    wrong = [(f, text) for f, text in named.items() if schedule.sets(f) == "plan" and text not in plans]
    return [RecordError(key, field, f"there is no plan '{text}'") for field, text in wrong]


def _level(answer: Sequence[bytes | None]) -> float | None:
    """A record's level of a model, where it names one below 1.0; one for the model goes before one for all."""
    texts = [text for text in answer if text is not None]
    try:
        level = float(texts[0])
    except (IndexError, ValueError):
        return None
    return round_level(level) if 0.0 < level < 1.0 else None


def _missing(key: str) -> str:
    kind, _, name = key.partition(":")
    return f"There is no {kind} '{name}'." if kind in ("tier", "tenant", "plan", "project") else _NO_KEY
