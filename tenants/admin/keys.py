"""Changes to API keys: made, limited, rotated, revoked."""

from __future__ import annotations

import time
from collections.abc import Collection

from tenants.admin.directory import Directory
from tenants.changes import edits
from tenants.changes.audit import AuditLog, Entry
from tenants.changes.edits import AdminError, Changes, Edit, Found, Missing
from tenants.records import keyspace, schedule
from tenants.records.fields import iso, listed
from tenants.records.hashes import parse_key
from tenants.records.schema import LIMIT_FIELDS, KeyRecord, RecordError
from tenants.reports import catalog
from tenants.store.store import TenantStore

SETTABLE = (*LIMIT_FIELDS, "label", "scopes", "expires_at", "project")


class KeyAdmin(Directory):
    """What is done to API keys. Methods raise AdminError, RecordError (key and field) or Unavailable.

    `expect` is the version of a record that somebody read (`Found.version`): where it is another by now, Conflict.

    Args:
        who, via: as of `AuditLog`.
        unchecked: whether models and classes that were never served may be named.
    """

    def __init__(
        self, store: TenantStore, who: str | None = None, via: str | None = None, *, unchecked: bool = False
    ) -> None:
        super().__init__(store)
        self.log = AuditLog(store, who, via)
        self._unchecked = unchecked

    async def create_key(
        self,
        tenant_id: str,
        *,
        label: str = "",
        expires_at: float | None = None,
        scopes: Collection[str] | None = None,
        limits: Changes | None = None,
        project: str = "",
    ) -> tuple[str, KeyRecord]:
        """A new key of a tenant: the secret, which nothing keeps, and its record. `expires_at` in unix seconds.

        Args:
            scopes: `inference`, `entitlements`, `model:<id>`; None is everything.
            limits: limits of this key beside its tenant's, such as {"rpm": "60"}.
            project: whose limits hold for this key too.
        """
        secret = keyspace.new_secret(tenant_id)
        digest = keyspace.key_digest(secret)
        if unknown := sorted(set(limits or {}) - set(LIMIT_FIELDS)):
            raise AdminError(f"'{unknown[0]}' is no limit of a key; limits: {', '.join(LIMIT_FIELDS)}.", unknown[0])
        fields = {
            "tenant": (await self.tenant(tenant_id)).id,
            **({"label": label} if label else {}),
            **({"project": project} if project else {}),
            "prefix": f"sk-{tenant_id}-…{secret[-4:]}",
            "status": "active",
            "created_at": iso(time.time()),
            **({} if expires_at is None else {"expires_at": moment(expires_at)}),
            **({} if scopes is None else {"scopes": listed(scopes)}),
            **{name: limit for name, limit in (limits or {}).items() if limit is not None},
        }
        await self._spelt(keyspace.apikey(digest), fields)
        await self._known_project(fields)
        written: list[KeyRecord] = []

        def build(found: Found) -> Edit:
            after, commands = edits.changed(found, fields)
            try:
                written[:] = [parse_key(digest, after)]
            except RecordError as error:  # its record's name says nothing yet to anyone
                raise AdminError(f"{error.field}: {error.problem}", error.field) from None
            return Edit(after, commands, Entry("key create", tenant_id, detail=digest[:12]))

        await edits.edit(self._store, self.log, keyspace.apikey(digest), build)
        return secret, written[0]

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
            old.tenant,
            label=old.label,
            expires_at=old.expires_at,
            scopes=old.scopes,
            limits=limits,
            project=old.project,
        )
        ended = await self._set_key(old.digest, "key rotate", {"expires_at": iso(ends)}, f"{old.id} to {new.id}")
        return secret, new, ended

    async def set_key(self, reference: str, changes: Changes, *, expect: str | None = None) -> KeyRecord:
        """Change limits, scopes, label or expiry of the key with this id, prefix or secret."""
        for field in changes:
            if field not in SETTABLE:
                raise AdminError(f"'{field}' of a key cannot be set; what can: {', '.join(SETTABLE)}.", field)
        digest = await self.find_digest(reference)
        await self._spelt(keyspace.apikey(digest), changes)
        await self._known_project(changes)
        return await self._set_key(digest, "key set", changes, digest[:12], expect)

    async def revoke_key(self, reference: str, *, expect: str | None = None) -> KeyRecord | RecordError:
        """Revoke the key with this id (8 digits or more), prefix (`sk-acme-…abcd`) or secret, and show it.

        One whose record does not validate is revoked too: it stays refused when somebody mends it.
        """
        digest = await self.find_digest(reference)
        key = keyspace.apikey(digest)
        shown: list[KeyRecord | RecordError] = []

        def build(found: Found) -> Edit:
            edits.expect(found, expect, f"Key {digest[:12]}")
            if not found.is_hash:  # nothing can be revoked in it, and it is no key
                shown[:] = [RecordError(key, "", "was no hash; it is deleted")]
                return Edit({}, (("DEL", key),), Entry("key revoke", "?", detail=f"{digest[:12]}, which was no hash"))
            if not found.raw:
                raise Missing("This key was deleted meanwhile.")
            after, commands = edits.changed(found, {"status": "revoked"})
            try:
                shown[:] = [parse_key(digest, after)]
            except RecordError as error:
                shown[:] = [error]
            owner = edits.texts(after).get("tenant", "?")
            return Edit(after, commands, Entry("key revoke", owner, detail=digest[:12]))

        await edits.edit(self._store, self.log, key, build)
        return shown[0]

    async def _set_key(
        self, digest: str, action: str, changes: Changes, detail: str, expect: str | None = None
    ) -> KeyRecord:
        key = keyspace.apikey(digest)
        written: list[KeyRecord] = []

        def build(found: Found) -> Edit:
            if found.is_hash and not found.raw:
                raise Missing("This key was deleted meanwhile.")
            edits.expect(found, expect, f"Key {digest[:12]}")
            after, commands = edits.changed(found, changes)
            written[:] = [parse_key(digest, after)]
            return Edit(after, commands, Entry(action, written[0].tenant, detail=detail))

        await edits.edit(self._store, self.log, key, build)
        return written[0]

    async def _known_project(self, changes: Changes) -> None:
        """Raises AdminError where the changes name a project that is none."""
        for name in {value for field, value in changes.items() if schedule.sets(field) == "project" and value}:
            if not (keyspace.is_name(name) and (await self._store.hashes(keyspace.project(name)))[0]):
                raise AdminError(f"There is no project '{name}'.", "project")

    async def _spelt(self, key: str, changes: Changes) -> None:
        """Raises RecordError for a model or a class that was never served, unless such may be named."""
        if self._unchecked:
            return
        for field, problem in catalog.misspelt(await catalog.read(self._store), changes):
            raise RecordError(key, field, f"{problem}; to name what is not served yet, say --unchecked")


def moment(seconds: float) -> str:
    """Unix seconds as a record holds them. Raises AdminError where there is no such date."""
    try:
        return iso(seconds)
    except (OverflowError, ValueError, OSError):
        raise AdminError("expires_at: expected unix seconds before the year 10000.", "expires_at") from None
