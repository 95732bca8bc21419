"""Changes to tiers, tenants and keys: validated before they are written, and each noted in the audit stream."""

from __future__ import annotations

import hmac
import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from tenants import edits, keyspace
from tenants.edits import AdminError, Changes
from tenants.fields import iso, parse_moment
from tenants.records import (
    LIMIT_FIELDS,
    KeyRecord,
    RawHash,
    RecordError,
    TenantRecord,
    TierRecord,
    parse_key,
    parse_tenant,
    parse_tier,
)
from tenants.store import Command, TenantStore

Record = TypeVar("Record")


class TenantAdmin:
    """What the `tenants` command does. Methods raise AdminError, RecordError (key and field) or Unavailable."""

    def __init__(self, store: TenantStore, who: str | None = None) -> None:
        self._store = store
        self._who = who or edits.os_user()

    async def tier(self, name: str) -> TierRecord:
        """One tier."""
        return parse_tier(name, await self._record(keyspace.tier(name), f"There is no tier '{name}'."))

    async def tenant(self, tenant_id: str) -> TenantRecord:
        """One tenant."""
        return parse_tenant(tenant_id, await self._record(keyspace.tenant(tenant_id), _no_tenant(tenant_id)))

    async def tiers(self) -> dict[str, TierRecord | RecordError]:
        """All tiers by name; one that does not validate is its error."""
        return await self._all(keyspace.TIER, parse_tier)

    async def tenants(self, ids: Sequence[str] | None = None) -> dict[str, TenantRecord | RecordError]:
        """All tenants, or those named, by id; one that does not validate is its error."""
        return await self._all(keyspace.TENANT, parse_tenant, ids)

    async def keys(self, tenant_id: str | None = None) -> dict[str, KeyRecord | RecordError]:
        """A tenant's keys, or all, by hash; one that does not validate is its error, and belongs to no tenant."""
        found = await self._all(keyspace.APIKEY, parse_key)
        if tenant_id is None:
            return found
        own = {d: key for d, key in found.items() if isinstance(key, KeyRecord) and key.tenant == tenant_id}
        notes = await self._used(own)
        return {d: key.model_copy(update=note) for (d, key), note in zip(own.items(), notes, strict=True)}

    async def _used(self, digests: Collection[str]) -> list[dict[str, float]]:
        texts = await self._store.pipeline([("GET", keyspace.used(digest)) for digest in digests]) if digests else []
        return [{"last_used": parse_moment(text.decode())} if isinstance(text, bytes) else {} for text in texts]

    async def create_tier(self, name: str, fields: Changes) -> TierRecord:
        """Create a tier; `utility` is required."""
        return await self._write(keyspace.tier(name), name, fields, parse_tier, create=True)

    async def set_tier(self, name: str, changes: Changes) -> TierRecord:
        """Change fields of a tier."""
        return await self._write(keyspace.tier(name), name, changes, parse_tier)

    async def create_tenant(
        self, tenant_id: str, *, tier: str, name: str = "", fields: Changes | None = None
    ) -> TenantRecord:
        """Create a tenant of an existing tier."""
        base = {"tier": tier, "name": name or tenant_id, "status": "active"}
        return await self._write_tenant(tenant_id, {**base, **(fields or {})}, create=True)

    async def set_tenant(self, tenant_id: str, changes: Changes) -> TenantRecord:
        """Change fields of a tenant; a tier field is an override."""
        return await self._write_tenant(tenant_id, changes)

    async def set_focus(self, tenant_id: str, model: str, strengths: Mapping[str, float]) -> TenantRecord:
        """Set a tenant's standing focus on a model, term by term; 0 removes one."""
        if not keyspace.is_name(model):
            raise AdminError(f"'{model}' is not a model id.")
        for term, strength in strengths.items():
            if not -1.0 < strength < 1.0:  # also catches NaN
                raise AdminError(f"The strength of '{term}' must lie strictly between -1 and 1, not {strength:g}.")
        return await self._write_tenant(
            tenant_id, {f"focus:{model}:{term}": repr(f) if f else None for term, f in strengths.items()}
        )

    async def create_key(
        self,
        tenant_id: str,
        *,
        label: str = "",
        expires_at: float | None = None,
        scopes: Collection[str] | None = None,
        limits: Mapping[str, str] | None = None,
    ) -> tuple[str, KeyRecord]:
        """A new key of a tenant: the secret, which nothing keeps, and its record. `expires_at` in unix seconds.

        Args:
            scopes: `inference`, `entitlements`, `model:<id>`; None is everything.
            limits: limits of this key beside its tenant's, such as {"rpm": "60"}.
        """
        secret = f"sk-{tenant_id}-{secrets.token_urlsafe(32)}"
        digest = keyspace.key_digest(secret)
        key = keyspace.apikey(digest)
        fields = {
            "tenant": (await self.tenant(tenant_id)).id,
            "label": label,
            "prefix": f"sk-{tenant_id}-…{secret[-4:]}",
            "status": "active",
            "created_at": iso(time.time()),
            **({} if expires_at is None else {"expires_at": iso(expires_at)}),
            **({} if scopes is None else {"scopes": ",".join(sorted(scopes))}),
            **(limits or {}),
        }
        record = parse_key(digest, {name.encode(): value.encode() for name, value in fields.items()})
        await self._store.edit(key, lambda _: [edits.hset(key, fields), self._note("key create", tenant_id, record.id)])
        return secret, record

    async def rotate_key(self, reference: str, *, overlap_s: float) -> tuple[str, KeyRecord, KeyRecord]:
        """A new key like an old one, which goes on for `overlap_s` seconds: secret, new record, old record."""
        old = await self._find_key(reference)
        if old.status == "revoked" or old.expired(time.time()):
            raise AdminError(f"Key {old.id} is no longer valid; create a new one: tenants key create {old.tenant}")
        ends = time.time() + overlap_s
        if old.expires_at is not None:
            ends = min(ends, old.expires_at)
        limits = {name: str(limit) for name in LIMIT_FIELDS if (limit := getattr(old, name)) is not None}
        secret, new = await self.create_key(
            old.tenant, label=old.label, expires_at=old.expires_at, scopes=old.scopes, limits=limits
        )
        ended = await self._set_key(old, "key rotate", {"expires_at": iso(ends)}, f"{old.id} to {new.id}")
        return secret, new, ended

    async def set_key(self, reference: str, changes: Changes) -> KeyRecord:
        """Change limits, scopes, label or expiry of the key with this id, prefix or secret."""
        for field in changes:
            if field not in (*LIMIT_FIELDS, "label", "scopes", "expires_at"):
                raise AdminError(f"'{field}' of a key cannot be set; what can: label, scopes, expires_at and limits.")
        record = await self._find_key(reference)
        return await self._set_key(record, "key set", changes, json.dumps({"key": record.id, **changes}))

    async def revoke_key(self, reference: str) -> KeyRecord:
        """Revoke the key with this id (8 digits or more), prefix (`sk-acme-…abcd`) or secret."""
        record = await self._find_key(reference)
        return await self._set_key(record, "key revoke", {"status": "revoked"}, record.id)

    async def _set_key(self, record: KeyRecord, action: str, changes: Changes, detail: str) -> KeyRecord:
        key = keyspace.apikey(record.digest)
        written: list[KeyRecord] = []

        def build(raw: RawHash) -> list[Command]:
            if not raw:
                raise AdminError("This key was deleted meanwhile.")
            after, commands = edits.changed(key, raw, changes)
            written[:] = [parse_key(record.digest, after)]
            return [*commands, self._note(action, record.tenant, detail)]

        await self._store.edit(key, build)
        return written[0]

    async def delete_tenant(self, tenant_id: str) -> int:
        """Delete a tenant and its keys; its usage stays. How many keys there were."""
        # Not `tenant()`: one that does not validate must be deletable.
        key = keyspace.tenant(tenant_id)
        try:
            await self._record(key, _no_tenant(tenant_id))
        except RecordError:
            pass
        digests = list(await self.keys(tenant_id))
        for digest in digests:
            await self._store.execute("DEL", keyspace.apikey(digest))
        await self._delete(key, "tenant delete", tenant_id, f"{len(digests)} keys")
        return len(digests)

    async def delete_tier(self, name: str) -> None:
        """Delete a tier that no tenant is of."""
        key = keyspace.tier(name)
        try:
            await self._record(key, f"There is no tier '{name}'.")
        except RecordError:
            pass
        users = [t.id for t in (await self.tenants()).values() if isinstance(t, TenantRecord) and t.tier == name]
        if users:
            raise AdminError(f"Tier '{name}' has {len(users)} tenants, such as '{users[0]}'; move them first.")
        await self._delete(key, "tier delete", name, "")

    async def _delete(self, key: str, action: str, subject: str, detail: str) -> None:
        await self._store.execute("DEL", key)
        await self._store.execute(*self._note(action, subject, detail))

    async def audit(self, count: int = 50) -> list[dict[str, str]]:
        """The last changes, newest first: `time` (unix seconds), `who`, `action`, `subject`, `detail`."""
        entries = await self._store.execute("XREVRANGE", keyspace.AUDIT, "+", "-", "COUNT", count)
        return [
            {"time": str(int(entry.partition(b"-")[0]) / 1000)}
            | {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in fields.items()}
            for entry, fields in entries
        ]

    async def check(self) -> list[RecordError]:
        """Everything that does not validate or leads nowhere."""
        tiers, tenants, keys = await self.tiers(), await self.tenants(), await self.keys()
        problems = [
            record for record in (*tiers.values(), *tenants.values(), *keys.values()) if isinstance(record, RecordError)
        ]
        for tenant in tenants.values():
            if isinstance(tenant, TenantRecord) and tenant.tier not in tiers:
                problems.append(RecordError(keyspace.tenant(tenant.id), "tier", f"there is no tier '{tenant.tier}'"))
        for key in keys.values():
            if isinstance(key, KeyRecord) and key.tenant not in tenants:
                problems.append(
                    RecordError(keyspace.apikey(key.digest), "tenant", f"there is no tenant '{key.tenant}'")
                )
        return sorted(problems, key=lambda problem: (problem.key, problem.field))

    async def _record(self, key: str, missing: str) -> RawHash:
        raw = (await self._store.hashes(key))[0]
        if not raw:
            raise AdminError(missing)
        return raw

    async def names(self, prefix: str) -> list[str]:
        """What there is under a prefix of `keyspace`, sorted."""
        return sorted({key.removeprefix(prefix) async for key in self._store.scan(prefix)})

    async def _all(
        self, prefix: str, parse: Callable[[str, RawHash], Record], names: Sequence[str] | None = None
    ) -> dict[str, Record | RecordError]:
        if names is None:
            names = await self.names(prefix)
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

    async def _write_tenant(self, tenant_id: str, changes: Changes, *, create: bool = False) -> TenantRecord:
        tier = changes.get("tier")
        if tier and not (await self._store.hashes(keyspace.tier(tier)))[0]:
            raise AdminError(f"There is no tier '{tier}'.")
        return await self._write(keyspace.tenant(tenant_id), tenant_id, changes, parse_tenant, create=create)

    async def _write(
        self, key: str, name: str, changes: Changes, parse: Callable[[str, RawHash], Record], *, create: bool = False
    ) -> Record:
        kind = key.partition(":")[0]
        if not keyspace.is_name(name):
            raise AdminError(f"'{name}' is not a {kind}'s name: use letters, digits, '.', '_' and '-', 64 at most.")
        written: list[Record] = []

        def build(raw: RawHash) -> list[Command]:
            if create and raw:
                raise AdminError(f"There already is a {kind} '{name}'.")
            if not create and not raw:
                raise AdminError(f"There is no {kind} '{name}'.")
            after, commands = edits.changed(key, raw, changes)
            written[:] = [parse(name, after)]
            detail = json.dumps({field: value or None for field, value in changes.items()}, ensure_ascii=False)
            return [*commands, self._note(f"{kind} {'create' if create else 'set'}", name, detail)]

        await self._store.edit(key, build)
        return written[0]

    async def _find_key(self, reference: str) -> KeyRecord:
        wanted, digest = reference.replace("...", "…"), keyspace.key_digest(reference)
        matches = [
            key
            for key in (await self.keys()).values()
            if isinstance(key, KeyRecord)
            and (
                hmac.compare_digest(key.digest, digest)
                or key.prefix == wanted
                or (len(wanted) >= 8 and key.digest.startswith(wanted))
            )
        ]
        if not matches:
            raise AdminError("There is no such key; `tenants key list <tenant>` shows ids and prefixes.")
        if len(matches) > 1:
            raise AdminError(f"{len(matches)} keys match; name one by its id: {', '.join(key.id for key in matches)}.")
        return matches[0]

    def _note(self, action: str, subject: str, detail: str) -> Command:
        return edits.note(self._who, action, subject, detail)


def _no_tenant(tenant_id: str) -> str:
    return f"There is no tenant '{tenant_id}'."
