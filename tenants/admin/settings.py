"""Changes of what holds for the whole installation, and of the addresses that alerts are sent to; audited."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable

from tenants.changes import edits
from tenants.changes.audit import AuditLog, Entry
from tenants.changes.edits import AdminError, Changes, Edit, Found, Missing
from tenants.records import keyspace
from tenants.records.hashes import RawHash
from tenants.records.schema import RecordError
from tenants.records.settings import Settings, parse_settings, parse_webhooks
from tenants.store.store import TenantStore


async def read_settings(store: TenantStore) -> Settings:
    """What is set. Raises RecordError, Unavailable."""
    return parse_settings((await store.hashes(keyspace.SETTINGS))[0])


async def change_settings(
    store: TenantStore, log: AuditLog, changes: Changes, *, expect: str | None = None
) -> Settings:
    """Change some of it; None puts the default back. Raises AdminError, RecordError, Unavailable."""
    if unknown := sorted(set(changes) - set(Settings.model_fields)):
        raise AdminError(f"'{unknown[0]}' is no setting; there are {', '.join(Settings.model_fields)}.", unknown[0])
    await _edit(store, log, keyspace.SETTINGS, changes, Entry("settings set", "installation"), parse_settings, expect)
    return await read_settings(store)


async def invalid(store: TenantStore) -> list[RecordError]:
    """What of it does not validate."""
    problems = []
    for read in (read_settings, webhooks):
        try:
            await read(store)
        except RecordError as error:
            problems.append(error)
    return problems


async def webhooks(store: TenantStore) -> dict[str, str]:
    """Addresses by name. Raises RecordError, Unavailable."""
    return parse_webhooks((await store.hashes(keyspace.WEBHOOKS))[0])


async def set_webhook(store: TenantStore, log: AuditLog, name: str, url: str) -> str:
    """Send alerts to an address as well; the secret that signs them, which is answered this once.

    One of that name gets the new address and a new secret. Raises AdminError, RecordError, Unavailable.
    """
    if not keyspace.is_name(name):
        raise AdminError(f"'{name}' is no name: use letters, digits, '.', '_' and '-', 64 at most.", "name")
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    # First, for an address whose secret is another's would get what it cannot check.
    await _edit(store, log, keyspace.WEBHOOKS, {name: url}, Entry("webhook set", name), parse_webhooks)
    await store.execute("SET", keyspace.webhook_secret(name), secret)
    return secret


async def remove_webhook(store: TenantStore, log: AuditLog, name: str) -> None:
    """Send nothing to an address any more. Raises Missing, RecordError, Unavailable."""
    if name not in await webhooks(store):
        raise Missing(f"There is no webhook '{name}'.")
    await _edit(store, log, keyspace.WEBHOOKS, {name: None}, Entry("webhook remove", name), parse_webhooks)
    await store.execute("DEL", keyspace.webhook_secret(name))


async def _edit(
    store: TenantStore,
    log: AuditLog,
    key: str,
    changes: Changes,
    entry: Entry,
    parse: Callable[[RawHash], object],
    expect: str | None = None,
) -> None:
    def build(found: Found) -> Edit:
        edits.expect(found, expect, key.capitalize())
        after, commands = edits.changed(found, changes)
        try:
            parse(after)
        except RecordError as error:
            if error.field in changes:
                raise AdminError(f"{error.field}: {error.problem}", error.field) from None
            raise
        return Edit(after, commands, entry)

    await edits.edit(store, log, key, build)
