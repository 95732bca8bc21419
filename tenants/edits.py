"""A change of a record: the commands that make it, and its entry in the audit stream."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping

from tenants import keyspace, seal
from tenants.records import RawHash, RecordError
from tenants.store import Command

AUDIT_LENGTH = 100_000
Changes = Mapping[str, str | None]
"""Field to its new text; None removes the field. "" stays: an empty list of rights is no right, not every right."""


class AdminError(Exception):
    """A change that is refused; the message names what is wrong, for a person."""


def changed(key: str, raw: RawHash, changes: Changes) -> tuple[dict[bytes, bytes], list[Command]]:
    """A record after changes, and the commands that make them. A field that it has lost stays missed.

    Raises:
        RecordError: the changes name the seal, which is not an admin's to write.
    """
    if seal.FIELD in changes:
        raise RecordError(key, seal.FIELD, "is written by this command itself")
    fields = {field: value for field, value in changes.items() if value is not None}
    removed = {field for field, value in changes.items() if value is None}
    there = {field.decode("utf-8", "replace") for field in raw}
    sealed = seal.names(raw.get(seal.FIELD.encode(), b"").decode("utf-8", "replace"))
    fields[seal.FIELD] = seal.over((there | sealed | fields.keys()) - removed)
    gone = sorted(removed & there)
    after = {field: value for field, value in raw.items() if field.decode("utf-8", "replace") not in gone}
    after |= {field.encode(): value.encode() for field, value in fields.items()}
    return after, [hset(key, fields), *([("HDEL", key, *gone)] if gone else [])]


def hset(key: str, fields: Mapping[str, str]) -> Command:
    """The command that writes fields."""
    return ("HSET", key, *(part for pair in fields.items() for part in pair))


def note(who: str, action: str, subject: str, detail: str, stream: str = keyspace.AUDIT) -> Command:
    """The command that adds an entry to an audit stream; the server's clock says when."""
    what = ("who", who, "action", action, "subject", subject, "detail", detail)
    return ("XADD", stream, "MAXLEN", "~", AUDIT_LENGTH, "*", *what)


def os_user() -> str:
    """Who runs this process, by name where there is one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid {os.getuid()}"
