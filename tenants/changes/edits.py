"""A change of a record: validated against what was read, written with its audit entry and its index, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from policies.errors import Unavailable
from tenants.changes import index
from tenants.changes.audit import ATTEMPTS, BY_HAND, AuditLog, Entry, Values, masked
from tenants.records import completeness, keyspace, schedule
from tenants.records.hashes import RawHash
from tenants.records.schema import RecordError
from tenants.store import scripts
from tenants.store.link import Command
from tenants.store.store import TenantStore

_EDIT = scripts.load("changes/edit")
Changes = Mapping[str, str | None]
"""Field to its new text; None removes the field. "" stays: an empty list of rights is no right, not every right."""


class AdminError(Exception):
    """A change that is refused; the message names what is wrong, for a person.

    Args:
        field: the field at fault, or "".
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class Missing(AdminError):
    """What should be changed or shown is not there."""


class Conflict(AdminError):
    """What should be made is there already, or is still in use."""


class Changed(Conflict):
    """It was changed since it was read."""


@dataclass(frozen=True, slots=True)
class Found:
    """A record as it was read.

    Attributes:
        raw: its fields; none where there is none, or where the key holds something else than a hash.
        is_hash: False for that last case.
        known: its fields as the last audited change left them; None where there was none.
    """

    key: str
    raw: RawHash
    is_hash: bool
    known: Mapping[str, str] | None

    @property
    def version(self) -> str:
        """16 hex digits that change with any edit, "" where there is no record."""
        return version(self.key, self.raw) if self.is_hash else "0" * 16

    @property
    def whole(self) -> RawHash:
        """Its fields, to be parsed. Raises RecordError where the key holds something else."""
        if not self.is_hash:
            raise RecordError(self.key, "", "is not a hash")
        return self.raw

    def by_hand(self) -> Entry | None:
        """The entry for what somebody changed without a command; None where nobody did."""
        now, before = told(self.raw), dict(self.known or {})
        # A record of before there was this note is told from one that was written by hand by its seal.
        if now == before or (self.known is None and completeness.FIELD in now):
            return None
        kind, _, subject = self.key.partition(":")
        action = "created" if not before else "changed" if now else "deleted" if self.is_hash else "overwritten"
        return Entry(f"{kind} {action}", shown(subject, kind), differences(before, now), "", BY_HAND)


@dataclass(frozen=True, slots=True)
class Edit:
    """What a record shall be, and why.

    Attributes:
        after: its fields; none deletes it.
        entry: for the audit log, whose changes are filled in; None: nothing is changed, only noted.
    """

    after: RawHash
    commands: tuple[Command, ...]
    entry: Entry | None


async def edit(store: TenantStore, log: AuditLog, key: str, build: Callable[[Found], Edit]) -> Found:
    """Read a record, then write the edit built from it, its audit entry and its index, unless somebody writes first.

    All or nothing, but in a Cluster, where the log and the index follow the record. What somebody had changed by hand
    is entered before it.

    Returns:
        The record as it was.

    Raises:
        Unavailable: the store is away, or the record keeps changing.
    """
    for attempt in range(ATTEMPTS):
        tail = await log.tail()
        found = await read(store, key)
        wanted = build(found)
        entries = [entry for entry in (found.by_hand(), _filled(wanted, found)) if entry]
        lines = await log.lines(tail, entries)
        noted = [("RPUSH", keyspace.AUDIT, line) for line in lines]
        records = [*wanted.commands, _known(key, wanted.after), *index.moves(key, found.raw, found.known, wanted.after)]
        apart: list[Command] = []
        if store.clustered:
            apart, records = records[len(wanted.commands) :], records[: len(wanted.commands)]
        together = records if store.clustered else [*noted, *records]
        before = [word for pair in found.raw.items() for word in pair]
        words = [word for command in together for word in (len(command), *command)]
        others = sorted({command[1] for command in together} - {key, keyspace.AUDIT})
        log_key = "" if store.clustered or not lines else keyspace.AUDIT
        state = [len(before) if found.is_hash else -1, *before, log_key, tail.line if log_key else ""]
        if await store.run(_EDIT, [key, *others], [*state, *words]) == 1:
            if store.clustered and entries:
                await log.append(*entries)
            for command in apart:
                await store.execute(*command)
            return found
        if attempt > 1:
            await asyncio.sleep(random.uniform(0.0, 0.005 * attempt))
    raise Unavailable("The record keeps changing; try again.")


async def read(store: TenantStore, key: str) -> Found:
    """One record, whatever its key holds."""
    return (await read_many(store, [key]))[0]


async def read_many(store: TenantStore, keys: list[str]) -> list[Found]:
    """Records with what is known of them."""
    raws = await store.try_hashes(keys)
    notes = await store.pipeline([("GET", keyspace.known(key)) for key in keys]) if keys else []
    return [
        Found(key, *(({}, False) if isinstance(raw, RecordError) else (raw, True)), _noted(note))
        for key, raw, note in zip(keys, raws, notes, strict=True)
    ]


def changed(found: Found, changes: Changes) -> tuple[dict[bytes, bytes], tuple[Command, ...]]:
    """A record after changes, and the commands that make them. A field that it has lost stays missed.

    Raises:
        RecordError: the changes name the seal, which is not an admin's to write.
    """
    key, raw = found.key, found.raw
    if not found.is_hash:
        raise RecordError(key, "", "is not a hash")
    if completeness.FIELD in changes:
        raise RecordError(key, completeness.FIELD, "is written by this command itself")
    changes = {**schedule.due(texts(raw)), **changes}  # what came due is written down by whoever edits next
    fields = {field: value for field, value in changes.items() if value is not None}
    removed = {field for field, value in changes.items() if value is None}
    there = {field.decode("utf-8", "replace") for field in raw}
    sealed = completeness.names(raw.get(completeness.FIELD.encode(), b"").decode("utf-8", "replace"))
    fields[completeness.FIELD] = completeness.over((there | sealed | fields.keys()) - removed)
    gone = sorted(removed & there)
    after = {field: value for field, value in raw.items() if field.decode("utf-8", "replace") not in gone}
    after |= {_bytes(key, field, field): _bytes(key, field, value) for field, value in fields.items()}
    return after, (hset(key, fields), *([("HDEL", key, *gone)] if gone else []))


def _bytes(key: str, field: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        shown = field.encode("utf-8", "replace").decode()
        raise RecordError(key, shown, "is not text that UTF-8 can hold") from None


def version(key: str, raw: RawHash) -> str:
    """16 hex digits over a record, "" where there is none."""
    if not raw:
        return ""
    state = hashlib.sha256(key.encode("utf-8", "surrogatepass"))
    for name, value in sorted(raw.items()):
        state.update(b"%d:%s%d:%s" % (len(name), name, len(value), value))
    return state.hexdigest()[:16]


def expect(found: Found, wanted: str | None, what: str) -> None:
    """Raises Changed unless a record is still of the version that somebody read; None: any."""
    if wanted is not None and found.version != wanted:
        raise Changed(f"{what} was changed since it was read; look at it again, then repeat the change.")


def texts(raw: RawHash) -> dict[str, str]:
    """A record's fields as texts; what is no UTF-8 shows as escapes."""
    return {n.decode("utf-8", "backslashreplace"): v.decode("utf-8", "backslashreplace") for n, v in raw.items()}


def told(raw: RawHash) -> dict[str, str]:
    """As `texts`, without the middle of any key that somebody pasted in: this is kept, and shown."""
    return {str(masked(name)): str(masked(value)) for name, value in texts(raw).items()}


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> Values:
    """The fields that differ, from old to new; the seal says nothing that they do not."""
    names = {*before, *after} - {completeness.FIELD}
    return {n: (before.get(n), after.get(n)) for n in sorted(names) if before.get(n) != after.get(n)}


def shown(subject: str, kind: str) -> str:
    """A record's name for people: of a key's hash the 12 digits that are its id."""
    return subject[:12] if kind in ("apikey", "adminkey") else subject


def hset(key: str, fields: Mapping[str, str]) -> Command:
    """The command that writes fields."""
    return ("HSET", key, *(part for pair in fields.items() for part in pair))


def _filled(wanted: Edit, found: Found) -> Entry | None:
    entry = wanted.entry
    if entry is None:
        return None
    changes = differences(told(found.raw), told(wanted.after))
    return Entry(entry.action, entry.subject, changes, entry.detail, entry.who)


def _known(key: str, after: RawHash) -> Command:
    return ("SET", keyspace.known(key), json.dumps(told(after))) if after else ("DEL", keyspace.known(key))


def _noted(note: object) -> dict[str, str] | None:
    try:
        found = json.loads(note) if isinstance(note, bytes) else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
