"""People who administrate over HTTP: their keys, and what each role may do."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from policies.errors import NotEntitled, Unauthenticated, Unavailable
from tenants.changes import edits, index
from tenants.changes.audit import AuditLog, Entry
from tenants.changes.edits import AdminError, Conflict, Edit, Found, Missing
from tenants.records import completeness, keyspace
from tenants.records.fields import Moment, iso
from tenants.records.schema import RecordError
from tenants.store.store import TenantStore

_SECRET = re.compile(r"adm-[A-Za-z0-9._-]{1,64}-[A-Za-z0-9_-]{43}")


class Right(StrEnum):
    """What a person may do."""

    READ = "read"
    KEYS = "API keys"
    STATUS = "suspend and activate"
    FOCUS = "standing focus"
    TENANTS = "tenants"
    TIERS = "tiers"
    MODELS = "models"
    USAGE = "usage"
    SETTINGS = "settings and webhooks"
    PEOPLE = "admin keys"


class Role(StrEnum):
    """What a person is."""

    VIEWER = "viewer"
    SUPPORT = "support"
    BILLING = "billing"
    OWNER = "owner"


ROLES: Mapping[Role, frozenset[Right]] = {
    Role.VIEWER: frozenset({Right.READ}),
    Role.SUPPORT: frozenset({Right.READ, Right.KEYS, Right.STATUS, Right.FOCUS}),
    Role.BILLING: frozenset({Right.READ, Right.STATUS, Right.TENANTS, Right.TIERS, Right.USAGE}),
    Role.OWNER: frozenset(Right),
}


class Operator(BaseModel):
    """`adminkey:<sha256>`: one person's key. Times are unix seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    name: str
    role: Role
    prefix: str = ""
    created_at: Moment = None
    expires_at: Moment = None
    status: Literal["active", "revoked"] = "active"

    @property
    def id(self) -> str:
        """The first 12 digits of its hash."""
        return self.digest[:12]

    def need(self, *rights: Right) -> None:
        """Raises NotEntitled without all of them."""
        if missing := [right for right in rights if right not in ROLES[self.role]]:
            raise NotEntitled(f"The role '{self.role}' may not change {missing[0]}.", code="role_not_entitled")


@dataclass(frozen=True)
class Operators:
    """Admin keys in the store. Methods raise AdminError, RecordError or Unavailable."""

    store: TenantStore
    log: AuditLog

    async def create(self, name: str, role: Role, *, expires_at: float | None = None) -> tuple[str, Operator]:
        """A key of a person: the secret, which nothing keeps, and its record. `expires_at` in unix seconds."""
        if not keyspace.is_name(name):
            raise AdminError(f"'{name}' is no name: use letters, digits, '.', '_' and '-', 64 at most.", "name")
        secret = f"adm-{name}-{secrets.token_urlsafe(32)}"
        digest = keyspace.key_digest(secret)
        fields = {"name": name, "role": str(role), "prefix": f"adm-{name}-…{secret[-4:]}", "status": "active"}
        fields["created_at"] = iso(time.time())
        if expires_at is not None:
            try:
                fields["expires_at"] = iso(expires_at)
            except (OverflowError, ValueError, OSError):
                raise AdminError("expires_at: expected a moment before the year 10000.", "expires_at") from None

        def build(found: Found) -> Edit:
            after, commands = edits.changed(found, fields)
            return Edit(after, commands, Entry("adminkey create", name, detail=digest[:12]))

        await edits.edit(self.store, self.log, keyspace.admin_key(digest), build)
        return secret, (await self.all())[digest[:12]]

    async def all(self) -> dict[str, Operator]:
        """Every admin key that validates, by id."""
        keys, _ = await index.beginning(self.store, keyspace.ADMIN_KEY)
        found = {}
        for record in await edits.read_many(self.store, keys):
            try:
                own = parse(record)
                found[own.id] = own
            except RecordError:
                continue
        return found

    async def revoke(self, reference: str) -> str:
        """Revoke the key with this id, 8 digits or more, whether it validates or not; its id."""
        keys, _ = await index.beginning(self.store, keyspace.admin_key(reference)) if len(reference) >= 8 else ([], 0)
        if not keys:
            raise Missing("There is no such admin key; `tenants admin-key list` shows their ids.")
        if len(keys) > 1:
            raise Conflict(f"{len(keys)} admin keys match; give more of the id.")
        shown = keys[0].removeprefix(keyspace.ADMIN_KEY)[:12]

        def build(found: Found) -> Edit:
            if not found.raw:
                raise Missing("This admin key was deleted meanwhile.")
            after, commands = edits.changed(found, {"status": "revoked"})
            name = edits.texts(after).get("name", "?")
            return Edit(after, commands, Entry("adminkey revoke", name, detail=shown))

        await edits.edit(self.store, self.log, keys[0], build)
        return shown

    async def authenticate(self, secret: str) -> Operator:
        """Whose key it is, asked of the store each time, so that a revoked one ends at once.

        Raises:
            Unauthenticated: it is unknown, revoked, expired, or its record does not validate.
            Unavailable: the store is away, or empty.
        """
        digest = keyspace.key_digest(secret)
        found = await edits.read(self.store, keyspace.admin_key(digest)) if _SECRET.fullmatch(secret) else None
        if found is None or not found.raw:
            if not await self.store.execute("EXISTS", keyspace.INSTALLATION):
                raise Unavailable("The records of this service are not there.", retry_after=30, code="store_empty")
            raise _unknown()
        try:
            own = parse(found)
        except RecordError:
            raise _unknown() from None
        if own.status != "active" or (own.expires_at is not None and time.time() >= own.expires_at):
            raise _unknown()
        return own


def parse(found: Found) -> Operator:
    """Parse `adminkey:<sha256>`. Raises RecordError, naming key and field."""
    digest = found.key.removeprefix(keyspace.ADMIN_KEY)
    fields = {name: value for name, value in edits.texts(found.raw).items() if name != completeness.FIELD}
    if lost := completeness.lost(edits.texts(found.raw)):
        raise RecordError(found.key, lost, "was lost")
    try:
        return Operator.model_validate({**fields, "digest": digest})
    except ValidationError as error:
        field = str(next(iter(error.errors()[0]["loc"]), ""))
        raise RecordError(found.key, field, error.errors()[0]["msg"].lower()) from None


def _unknown() -> Unauthenticated:
    return Unauthenticated("The admin key is not valid: it is unknown, revoked or expired.", code="invalid_admin_key")
