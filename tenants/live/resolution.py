"""From the hash of an API key to what it may do, by way of its tenant and its tier."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from policies.terms import Tier
from tenants.live import entitlements
from tenants.live.entitlements import Entitlements, Limits
from tenants.records import keyspace, schedule
from tenants.records.hashes import RawHash, parse_key, parse_project, parse_tenant, parse_tier
from tenants.records.prices import Plan, parse_plan
from tenants.records.schema import RecordError
from tenants.store.store import TenantStore


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a known key may do nothing."""

    code: str
    message: str


REVOKED = Refusal("invalid_api_key", "The API key is not valid: it is unknown, revoked or expired.")
SUSPENDED = Refusal("tenant_suspended", "This tenant is suspended; ask the operator of this service.")
BROKEN = Refusal("entitlements_invalid", "The records of this tenant are broken; ask the operator of this service.")


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a key resolved to, and from which Redis keys; `expires_at` in unix seconds. `problem` is for the log."""

    outcome: Entitlements | Refusal
    keys: tuple[str, ...]
    expires_at: float | None = None
    problem: RecordError | None = None
    changes_at: float | None = None
    """When a record behind it changes by itself, in unix seconds: it is not good from then on."""


async def resolve(store: TenantStore, digest: str, likely: tuple[str, ...] = ()) -> Resolution | None:
    """Resolve the key with SHA-256 `digest`; None if there is none. Raises Unavailable while the store is away.

    Args:
        likely: the Redis keys that it resolved from before, read in one round trip instead of three.
    """
    reader = _Reader(store)
    key = keyspace.apikey(digest)
    expires_at = None
    try:
        if likely:
            await reader.prefetch(likely)
        raw = await reader.read(key)
        if not raw:
            return None
        record = parse_key(digest, raw)
        if record.status == "revoked":
            return Resolution(REVOKED, (key,))
        expires_at = record.expires_at
        tenant = parse_tenant(record.tenant, await reader.need(keyspace.tenant(record.tenant)))
        tier = parse_tier(tenant.tier, await reader.need(keyspace.tier(tenant.tier)))
        names = dict.fromkeys(filter(None, (tenant.project, record.project)))
        projects = [parse_project(name, await reader.need(keyspace.project(name))) for name in names]
        plan = await _plan(reader, entitlements.plan_of(tenant, tier))
    except RecordError as problem:
        return Resolution(BROKEN, (*reader.used, *({problem.key} - set(reader.used))), expires_at, problem)
    changes_at = min((at for at in (tenant.changes_at, tier.changes_at) if at is not None), default=None)
    if tenant.status == "suspended":
        return Resolution(SUSPENDED, tuple(reader.used), expires_at, changes_at=changes_at)
    # What a record has become by itself is another version of it.
    come = [(key, _folded(raw)) for key, raw in reader.used.items()]
    merged = entitlements.merge(tenant, tier, record, entitlements.digest(come), plan, projects)
    return Resolution(_shared(merged, come), tuple(reader.used), expires_at, changes_at=changes_at)


def _folded(raw: RawHash) -> RawHash:
    if not any(name.startswith(b"at:") for name in raw):
        return raw
    texts = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in raw.items()}
    return {name.encode(): value.encode() for name, value in schedule.folded(texts).items()}


async def _plan(reader: _Reader, reference: str | None) -> Plan | None:
    if reference is None:
        return None
    raw = await reader.need(keyspace.plan(reference))
    version = entitlements.digest([(reference, raw)])
    return _plans.get(version) or _plans.setdefault(version, parse_plan(reference, raw))


_plans: WeakValueDictionary[str, Plan] = WeakValueDictionary()
_tiers: WeakValueDictionary[str, Tier] = WeakValueDictionary()
_limits: WeakValueDictionary[str, Limits] = WeakValueDictionary()


def _shared(own: Entitlements, records: Sequence[tuple[str, RawHash]]) -> Entitlements:
    """The same, with the terms of its tenant's other keys: many keys then take little memory."""
    terms = entitlements.digest(records[1:])  # all but the API key's own record
    tier, limits = _tiers.setdefault(terms, own.tier), _limits.setdefault(terms, own.limits)
    return dataclasses.replace(own, tier=tier, limits=limits)


class _Reader:
    """Reads records, remembering which; what was prefetched is not asked for again."""

    def __init__(self, store: TenantStore) -> None:
        self.used: dict[str, RawHash] = {}
        self._store = store
        self._ahead: dict[str, RawHash] = {}

    async def prefetch(self, keys: tuple[str, ...]) -> None:
        # A broken record may no longer be this key's, so only the walk below may complain of it.
        with contextlib.suppress(RecordError):
            self._ahead = dict(zip(keys, await self._store.hashes(*keys), strict=True))

    async def read(self, key: str) -> RawHash:
        raw = self._ahead[key] if key in self._ahead else (await self._store.hashes(key))[0]
        self.used[key] = raw
        return raw

    async def need(self, key: str) -> RawHash:
        raw = await self.read(key)
        if not raw:
            raise RecordError(key, "", "is missing")
        return raw
