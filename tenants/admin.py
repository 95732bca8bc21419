"""Changes to tiers, tenants and keys: validated before they are written, and each noted in the audit stream."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from tenants import edits, keyspace
from tenants.directory import Directory, no_tenant
from tenants.edits import AdminError, Changes
from tenants.fields import iso
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


class TenantAdmin(Directory):
    """What the `tenants` command does. Methods raise AdminError, RecordError (key and field) or Unavailable."""

    def __init__(self, store: TenantStore, who: str | None = None) -> None:
        super().__init__(store)
        self._who = who or edits.os_user()

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
        if not keyspace.is_model(model):
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
        limits: Changes | None = None,
    ) -> tuple[str, KeyRecord]:
        """A new key of a tenant: the secret, which nothing keeps, and its record. `expires_at` in unix seconds.

        Args:
            scopes: `inference`, `entitlements`, `model:<id>`; None is everything.
            limits: limits of this key beside its tenant's, such as {"rpm": "60"}.
        """
        secret = keyspace.new_secret(tenant_id)
        digest = keyspace.key_digest(secret)
        key = keyspace.apikey(digest)
        fields = {
            "tenant": (await self.tenant(tenant_id)).id,
            **({"label": label} if label else {}),
            "prefix": f"sk-{tenant_id}-…{secret[-4:]}",
            "status": "active",
            "created_at": iso(time.time()),
            **({} if expires_at is None else {"expires_at": iso(expires_at)}),
            **({} if scopes is None else {"scopes": ",".join(sorted(scopes))}),
            **(limits or {}),
        }
        after, commands = edits.changed(key, {}, fields)
        try:
            record = parse_key(digest, after)
        except RecordError as error:  # its record's name says nothing yet to anyone
            raise AdminError(f"{error.field}: {error.problem}") from None
        await self._store.edit(key, lambda _: [*commands, self._note("key create", tenant_id, record.id)])
        return secret, record

    async def rotate_key(self, reference: str, *, overlap_s: float) -> tuple[str, KeyRecord, KeyRecord]:
        """A new key like an old one, which goes on for `overlap_s` seconds: secret, new record, old record."""
        old = await self.find_key(reference)
        if old.status == "revoked" or old.expired(time.time()):
            raise AdminError(f"Key {old.id} is no longer valid; create a new one: tenants key create {old.tenant}")
        ends = time.time() + overlap_s
        if old.expires_at is not None:
            ends = min(ends, old.expires_at)
        limits = {name: str(limit) for name in LIMIT_FIELDS if (limit := getattr(old, name)) is not None}
        secret, new = await self.create_key(
            old.tenant, label=old.label, expires_at=old.expires_at, scopes=old.scopes, limits=limits
        )
        ended = await self._set_key(old.digest, "key rotate", {"expires_at": iso(ends)}, f"{old.id} to {new.id}")
        return secret, new, ended

    async def set_key(self, reference: str, changes: Changes) -> KeyRecord:
        """Change limits, scopes, label or expiry of the key with this id, prefix or secret."""
        for field in changes:
            if field not in (*LIMIT_FIELDS, "label", "scopes", "expires_at"):
                raise AdminError(f"'{field}' of a key cannot be set; what can: label, scopes, expires_at and limits.")
        digest = await self.find_digest(reference)
        return await self._set_key(digest, "key set", changes, json.dumps({"key": digest[:12], **changes}))

    async def revoke_key(self, reference: str) -> KeyRecord:
        """Revoke the key with this id (8 digits or more), prefix (`sk-acme-…abcd`) or secret."""
        digest = await self.find_digest(reference)
        return await self._set_key(digest, "key revoke", {"status": "revoked"}, digest[:12])

    async def _set_key(self, digest: str, action: str, changes: Changes, detail: str) -> KeyRecord:
        key = keyspace.apikey(digest)
        written: list[KeyRecord] = []

        def build(raw: RawHash) -> list[Command]:
            if not raw:
                raise AdminError("This key was deleted meanwhile.")
            after, commands = edits.changed(key, raw, changes)
            written[:] = [parse_key(digest, after)]
            return [*commands, self._note(action, written[0].tenant, detail)]

        await self._store.edit(key, build)
        return written[0]

    async def delete_tenant(self, tenant_id: str) -> int:
        """Delete a tenant and its keys; its usage stays. How many keys there were."""
        # Not `tenant()`: one that does not validate must be deletable.
        key = keyspace.tenant(tenant_id)
        try:
            await self._record(key, no_tenant(tenant_id))
        except RecordError:
            pass
        # Not `keys()`: one that does not validate now would be the next tenant's of that name, once it is mended.
        digests = await self.names(keyspace.APIKEY, where=("tenant", tenant_id))
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
        users = await self.names(keyspace.TENANT, where=("tier", name))
        if users:
            raise AdminError(f"Tier '{name}' has {len(users)} tenants, such as '{users[0]}'; move them first.")
        await self._delete(key, "tier delete", name, "")

    async def _delete(self, key: str, action: str, subject: str, detail: str) -> None:
        await self._store.execute("DEL", key)
        await self._store.execute(*self._note(action, subject, detail))

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
            detail = json.dumps(dict(changes), ensure_ascii=False)
            return [*commands, self._note(f"{kind} {'create' if create else 'set'}", name, detail)]

        await self._store.edit(key, build)
        return written[0]

    def _note(self, action: str, subject: str, detail: str) -> Command:
        return edits.note(self._who, action, subject, detail)
