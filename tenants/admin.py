"""Changes to tiers, tenants and keys: validated before they are written, and each noted in the audit stream."""

from __future__ import annotations

import getpass
import json
import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from tenants import keyspace
from tenants.records import (
    KeyRecord,
    RawHash,
    RecordError,
    TenantRecord,
    TierRecord,
    dump_key,
    parse_key,
    parse_tenant,
    parse_tier,
)
from tenants.store import Command, TenantStore

AUDIT_LENGTH = 100_000
Changes = Mapping[str, str | None]
"""Field to its new text; None or "" removes the field."""
Record = TypeVar("Record")


class AdminError(Exception):
    """A change that is refused; the message names what is wrong, for a person."""


class TenantAdmin:
    """What the `tenants` command does. Methods raise AdminError, RecordError (key and field) or Unavailable."""

    def __init__(self, store: TenantStore, who: str | None = None) -> None:
        self._store = store
        self._who = who or _os_user()

    async def tier(self, name: str) -> TierRecord:
        """One tier."""
        return parse_tier(name, await self._record(keyspace.tier(name), f"There is no tier '{name}'."))

    async def tenant(self, tenant_id: str) -> TenantRecord:
        """One tenant."""
        return parse_tenant(tenant_id, await self._record(keyspace.tenant(tenant_id), _no_tenant(tenant_id)))

    async def tiers(self) -> dict[str, TierRecord | RecordError]:
        """All tiers by name; one that does not validate is its error."""
        return await self._all(keyspace.TIER, parse_tier)

    async def tenants(self) -> dict[str, TenantRecord | RecordError]:
        """All tenants by id; one that does not validate is its error."""
        return await self._all(keyspace.TENANT, parse_tenant)

    async def keys(self, tenant_id: str | None = None) -> dict[str, KeyRecord | RecordError]:
        """A tenant's keys, or all, by hash; one that does not validate is its error, and belongs to no tenant."""
        found = await self._all(keyspace.APIKEY, parse_key)
        if tenant_id is None:
            return found
        return {d: key for d, key in found.items() if isinstance(key, KeyRecord) and key.tenant == tenant_id}

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
        self, tenant_id: str, *, label: str = "", expires_at: float | None = None, scopes: Collection[str] | None = None
    ) -> tuple[str, KeyRecord]:
        """A new key of a tenant: the secret, which nothing keeps, and its record. `expires_at` in unix seconds."""
        secret = f"sk-{tenant_id}-{secrets.token_urlsafe(32)}"
        record = KeyRecord(
            digest=keyspace.key_digest(secret),
            tenant=(await self.tenant(tenant_id)).id,
            label=label,
            prefix=f"sk-{tenant_id}-…{secret[-4:]}",
            scopes=None if scopes is None else frozenset(scopes),
            created_at=time.time(),
            expires_at=expires_at,
        )
        fields = dump_key(record)
        key = keyspace.apikey(record.digest)
        parse_key(record.digest, {name.encode(): value.encode() for name, value in fields.items()})
        await self._store.transact(
            [key], lambda _: [_hset(key, fields), self._note("key create", tenant_id, record.id)]
        )
        return secret, record

    async def revoke_key(self, reference: str) -> KeyRecord:
        """Revoke the key with this id (8 digits or more), prefix (`sk-acme-…abcd`) or secret."""
        record = await self._find_key(reference)
        key = keyspace.apikey(record.digest)

        def build(hashes: list[dict[bytes, bytes]]) -> list[Command]:
            if not hashes[0]:
                raise AdminError("This key was deleted meanwhile.")
            return [("HSET", key, "status", "revoked"), self._note("key revoke", record.tenant, record.id)]

        await self._store.transact([key], build)
        return record.model_copy(update={"status": "revoked"})

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

    async def _all(self, prefix: str, parse: Callable[[str, RawHash], Record]) -> dict[str, Record | RecordError]:
        keys = sorted({key async for key in self._store.scan(prefix)})
        found: dict[str, Record | RecordError] = {}
        for key in keys:
            name = key.removeprefix(prefix)
            try:
                raw = (await self._store.hashes(key))[0]
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

        def build(hashes: list[dict[bytes, bytes]]) -> list[Command]:
            raw = hashes[0]
            if create and raw:
                raise AdminError(f"There already is a {kind} '{name}'.")
            if not create and not raw:
                raise AdminError(f"There is no {kind} '{name}'.")
            fields = {field: value for field, value in changes.items() if value}
            gone = [field for field, value in changes.items() if not value and field.encode() in raw]
            after = {field: value for field, value in raw.items() if field.decode("utf-8", "replace") not in gone}
            after |= {field.encode(): value.encode() for field, value in fields.items()}
            written[:] = [parse(name, after)]
            commands = [_hset(key, fields)] if fields else []
            commands += [("HDEL", key, *gone)] if gone else []
            detail = json.dumps({**fields, **dict.fromkeys(gone)}, ensure_ascii=False)
            return [*commands, self._note(f"{kind} {'create' if create else 'set'}", name, detail)]

        await self._store.transact([key], build)
        return written[0]

    async def _find_key(self, reference: str) -> KeyRecord:
        wanted, digest = reference.replace("...", "…"), keyspace.key_digest(reference)
        matches = [
            key
            for key in (await self.keys()).values()
            if isinstance(key, KeyRecord)
            and (key.digest == digest or key.prefix == wanted or (len(wanted) >= 8 and key.digest.startswith(wanted)))
        ]
        if not matches:
            raise AdminError("There is no such key; `tenants key list <tenant>` shows ids and prefixes.")
        if len(matches) > 1:
            raise AdminError(f"{len(matches)} keys match; name one by its id: {', '.join(key.id for key in matches)}.")
        return matches[0]

    def _note(self, action: str, subject: str, detail: str) -> Command:
        what = ("who", self._who, "action", action, "subject", subject, "detail", detail)
        return ("XADD", keyspace.AUDIT, "MAXLEN", "~", AUDIT_LENGTH, "*", *what)


def _hset(key: str, fields: Mapping[str, str]) -> Command:
    return ("HSET", key, *(part for pair in fields.items() for part in pair))


def _no_tenant(tenant_id: str) -> str:
    return f"There is no tenant '{tenant_id}'."


def _os_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid {os.getuid()}"
