"""The installation's secrets: made by an explicit step, and never drawn anew beside levels that another one keyed."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping, Sequence

from tenants.changes.audit import AuditLog, Entry
from tenants.changes.edits import AdminError
from tenants.records import keyspace
from tenants.records.schema import RecordError
from tenants.reports.replicas import ReplicaReport
from tenants.store.store import TenantStore

NEW_SECRET = (
    "Every model's levels are then calibrated anew, and whoever kept answers of before can average the old noise with"
    " the new."
)
_HEX, _BASE64 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[A-Za-z0-9_-]{43}")
_KINDS: Mapping[str, tuple[str, Callable[[], str]]] = {
    keyspace.NOISE_SECRET: ("noise secret", lambda: secrets.token_hex(32)),
    keyspace.RECEIPT_SECRET: ("receipts' secret", lambda: secrets.token_urlsafe(32)),
}


def secret_id(secret: bytes) -> str:
    """16 hex digits that tell one noise secret from another, and the secret to nobody who has not guessed it."""
    return hmac.new(secret, b"noise secret id", hashlib.sha256).hexdigest()[:16]


async def create_secrets(
    store: TenantStore, *, outside: bool = False, new: bool = False, who: str | None = None
) -> list[str]:
    """Make the secrets that the store does not have; one that it has stays. What was done, a sentence each.

    Args:
        outside: whether the noise secret comes from the environment or a file, so that the store needs none.
        new: draw another noise secret than the one that was in use, which may be gone.
        who: for the audit stream; None: the user of this process.

    Raises:
        AdminError: the noise secret is gone, and what it keyed is still there; or `new` while replicas serve.
        Unavailable: the store is away.
    """
    if new:
        await _let_go(store)
    told = [NEW_SECRET] if new else []
    for key, (name, draw) in _KINDS.items():
        if outside and key == keyspace.NOISE_SECRET:
            told.append("The noise secret comes from outside the store, which is given none.")
            continue
        if key == keyspace.NOISE_SECRET and not new and not await store.execute("EXISTS", key):
            await _check_unused(store)
        created = await store.execute("SET", key, draw(), "NX")
        told.append(f"Created the {name} ({key}): back it up." if created else f"The {name} ({key}) is there already.")
        if created:
            await AuditLog(store, who).append(Entry("secret create", key))
    if await mark(store):
        await AuditLog(store, who).append(Entry("installation create", keyspace.INSTALLATION))
    return told


async def mark(store: TenantStore) -> bool:
    """Mark the store as an installation's, unless it is; whether it was not.

    In one without a mark, which is empty or was flushed, no key is known: gateways then say that the store is not
    ready, and not that keys are wrong.
    """
    return bool(await store.execute("SET", keyspace.INSTALLATION, secrets.token_hex(8), "NX"))


async def unmarked(store: TenantStore) -> list[RecordError]:
    """What is wrong with a store that has records and no mark."""
    if await store.execute("EXISTS", keyspace.INSTALLATION):
        return []
    return [RecordError(keyspace.INSTALLATION, "", "there is none: unknown keys are answered 503; run `tenants init`")]


async def noise_secret(store: TenantStore) -> str:
    """The installation's noise secret, 64 hex digits. Raises RecordError where the store has none, or it is damaged."""
    return await _read(store, keyspace.NOISE_SECRET, _HEX, "64 lower-case hex digits")


async def receipt_secret(store: TenantStore) -> str:
    """The secret that signs receipts, 43 characters of URL-safe base 64. Raises RecordError as `noise_secret`."""
    return await _read(store, keyspace.RECEIPT_SECRET, _BASE64, "43 characters of URL-safe base 64")


async def join(store: TenantStore, secret: bytes) -> str:
    """Say by its id which noise secret a replica serves with, unless the store's replicas have said so; the id.

    Raises:
        RecordError: they serve with another one.
        Unavailable: the store is away.
    """
    own = secret_id(secret)
    known = await store.place(keyspace.NOISE_SECRET_ID, own)
    if known != own:
        raise RecordError(
            keyspace.NOISE_SECRET_ID,
            "",
            f"this replica's noise secret has the id {own}, but the installation's has {known}; restore that one"
            " (secret:noise, AIM_NOISE_SECRET or noise_secret_file), or end all replicas and run"
            " `tenants init --new-secret`",
        )
    return own


async def strangers(store: TenantStore, reports: Mapping[str, Sequence[ReplicaReport]]) -> list[RecordError]:
    """Of each model whose replicas serve with another noise secret than the installation's, what is wrong."""
    known = (await store.execute("GET", keyspace.NOISE_SECRET_ID) or b"").decode("utf-8", "replace")
    found = []
    for model in sorted(reports):
        others = sorted({report.noise for report in reports[model] if report.noise and report.noise != known})
        if others:
            problem = (
                f"{model} is served with the noise secret of id {', '.join(others)}, not {known or 'any known one'}"
            )
            found.append(RecordError(keyspace.NOISE_SECRET_ID, "", f"{problem}; restart its replicas on one secret"))
    return found


async def _let_go(store: TenantStore) -> None:
    """Forget the noise secret and its id. Raises AdminError while replicas serve on it."""
    if (serving := await _first(store, keyspace.LEVELS)) is not None:
        raise AdminError(
            f"Replicas still serve on the noise secret in use ({serving}); end the application, wait 20 seconds, and"
            " try again."
        )
    await store.execute("DEL", keyspace.NOISE_SECRET)
    await store.execute("DEL", keyspace.NOISE_SECRET_ID)


async def _check_unused(store: TenantStore) -> None:
    used = keyspace.NOISE_SECRET_ID if await store.execute("EXISTS", keyspace.NOISE_SECRET_ID) else None
    for prefix in (keyspace.CALIBRATION, keyspace.FIELD):
        used = used or await _first(store, prefix)
    if used is not None:
        raise AdminError(
            f"The noise secret (secret:noise) is gone, but what it keyed is still there ({used}). Restore it from a"
            " backup, or give the one in use by AIM_NOISE_SECRET or noise_secret_file; or draw another by `tenants init"
            f" --new-secret`. {NEW_SECRET}"
        )


async def _first(store: TenantStore, prefix: str) -> str | None:
    async for key in store.scan(prefix):
        return key
    return None


async def _read(store: TenantStore, key: str, form: re.Pattern[str], expected: str) -> str:
    stored: bytes | None = await store.execute("GET", key)
    if stored is None:
        raise RecordError(key, "", "there is none; create it once by `tenants init`, or restore it from a backup")
    value = stored.decode("ascii", "replace")
    if not form.fullmatch(value):
        raise RecordError(key, "", f"expected {expected}")
    return value
