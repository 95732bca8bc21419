"""The audit log: every change with its old and new values, each line bound to the one before by that one's hash."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

from policies.errors import Unavailable
from tenants.records import keyspace
from tenants.store import scripts
from tenants.store.store import TenantStore

ATTEMPTS = 50
"""Of many who change something at once one gets through each time."""
BY_HAND = "(by hand)"
"""Who made a change that no command noted."""
PAGE = 500
MODEL_STREAM_LENGTH = 100_000
_TAIL, _APPEND = scripts.load("changes/tail"), scripts.load("changes/append")
_SECRET = re.compile(r"\b((?:sk|adm)-[A-Za-z0-9._-]{1,64}-)[A-Za-z0-9_-]{40}([A-Za-z0-9_-]{3})\b")
Values = Mapping[str, tuple[str | None, str | None]]
"""Field to its old and its new text; None: there is none."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One change.

    Attributes:
        action, subject: what was done, such as `tenant set`, and to what.
        changes: the record's fields that differ since.
        detail: what its fields do not say.
        who: None: the one whose log it is; else `BY_HAND`.
    """

    action: str
    subject: str
    changes: Values = field(default_factory=dict)
    detail: str = ""
    who: str | None = None


@dataclass(frozen=True, slots=True)
class Tail:
    """The log's last line, "" where it is empty, and the server's clock in unix seconds."""

    line: bytes
    now: float


class AuditLog:
    """Reads the log, and adds to it as one person.

    Args:
        who: changes something; None: the store's user that the connection is, as the store itself says.
        via: by what; None: this command, with the operating system's user and host.
    """

    def __init__(self, store: TenantStore, who: str | None = None, via: str | None = None) -> None:
        self._store = store
        self._who = who
        self._via = f"command of {os_user()}@{socket.gethostname()}" if via is None else via

    async def who(self) -> str:
        """Whose changes these are."""
        if self._who is None:
            self._who = await store_user(self._store)
        return self._who

    async def tail(self) -> Tail:
        """Where the next entry goes."""
        line, seconds, microseconds = await self._store.run(_TAIL, [keyspace.AUDIT], [])
        return Tail(line, int(seconds) + int(microseconds) / 1e6)

    async def lines(self, tail: Tail, entries: Sequence[Entry]) -> list[str]:
        """Entries as lines, each with the hash of the one before."""
        who, before, lines = await self.who(), tail.line, []
        for entry in entries:
            fields = {
                "time": round(tail.now, 3),
                "who": who if entry.who is None else entry.who,
                "via": self._via if entry.who is None else f"seen by {who}",
                "action": entry.action,
                "subject": entry.subject,
                "changes": {name: [masked(old), masked(new)] for name, (old, new) in sorted(entry.changes.items())},
                "detail": masked(entry.detail),
                "previous": line_hash(before),
            }
            line = json.dumps(fields)
            lines.append(line)
            before = line.encode()
        return lines

    async def append(self, *entries: Entry) -> None:
        """Add entries. Raises Unavailable."""
        for _ in range(ATTEMPTS):
            tail = await self.tail()
            lines = await self.lines(tail, entries)
            if await self._store.run(_APPEND, [keyspace.AUDIT], [tail.line, *lines]) == 1:
                return
        raise Unavailable("The audit log keeps changing; try again.")

    async def read(self, count: int = 50) -> list[dict[str, Any]]:
        """The last changes, newest first: `time` in unix seconds and the fields of `lines`."""
        lines = await self._store.execute("LRANGE", keyspace.AUDIT, -count, -1)
        found = [_fields(line) for line in reversed(lines)]
        for stream in (keyspace.AUDIT_MODELS, keyspace.AUDIT_BEFORE):
            found += [_of_stream(e) for e in await self._store.execute("XREVRANGE", stream, "+", "-", "COUNT", count)]
        # Sorting keeps the log's own order, which is the chain's, where two have the same time.
        return sorted(found, key=lambda change: -cast(float, change["time"]))[:count]

    async def verify(self) -> dict[str, Any]:
        """Whether each line still has the hash of the one before.

        Returns:
            `entries`, how many; `head`, the last line's hash: who keeps it elsewhere sees later whether lines that came
            before it were changed or cut off; `first`, the hash that the first line names, all zeros from the log's
            beginning; `broken`, numbers from 1 of lines that do not follow the one before.
        """
        start, broken, before, first = 0, list[int](), b"", line_hash(b"")
        while lines := await self._store.execute("LRANGE", keyspace.AUDIT, start, start + PAGE - 1):
            for number, line in enumerate(lines, start + 1):
                named = _fields(line).get("previous")
                if number == 1:
                    first = str(named)
                elif named != line_hash(before):
                    broken.append(number)
                before = line
            start += len(lines)
        return {"entries": start, "head": line_hash(before), "first": first, "broken": broken}


def line_hash(line: bytes) -> str:
    """SHA-256 of a line of the log, 64 hex digits; zeros where there is none."""
    return hashlib.sha256(line).hexdigest() if line else "0" * 64


def masked(text: str | None) -> str | None:
    """A text without the middle of any key that somebody pasted into it."""
    return None if text is None else _SECRET.sub(r"\1…\2", text)


def os_user() -> str:
    """Who runs this process: by the system's word, not by a variable that its user may set."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user need not have a name
        return f"uid {os.geteuid()}"


async def store_user(store: TenantStore) -> str:
    """The store's user that a connection is, in the store's words."""
    if not store.clustered:  # of a Cluster's nodes the client asks none that no key names
        try:
            return cast(str, (await store.execute("ACL", "WHOAMI")).decode("utf-8", "replace"))
        except Unavailable:  # it may not ask
            pass
    # The one whose password the store has taken.
    return urlsplit(store.url).username or "default"


def _fields(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
        return {**found, "time": float(found["time"])}
    except (ValueError, KeyError, TypeError):
        return {
            "time": 0.0,
            "who": "?",
            "action": "not an entry",
            "subject": "",
            "detail": line.decode("utf-8", "replace"),
        }


def _of_stream(entry: tuple[bytes, list[bytes] | Mapping[bytes, bytes]]) -> dict[str, Any]:
    number, words = entry
    pairs = words.items() if isinstance(words, Mapping) else zip(words[::2], words[1::2], strict=True)
    fields = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in pairs}
    return {"time": int(number.partition(b"-")[0]) / 1000, **fields}


def models_note(who: str, action: str, subject: str, detail: str) -> tuple[Any, ...]:
    """The command by which a replica notes what it began by itself; the server's clock says when."""
    what = ("who", who, "action", action, "subject", subject, "detail", detail)
    return ("XADD", keyspace.AUDIT_MODELS, "MAXLEN", "~", MODEL_STREAM_LENGTH, "*", *what)
