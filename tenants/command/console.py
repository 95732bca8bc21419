"""What every `tenants` command shares: its options, the store, mistakes in one line, and completion."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from policies.errors import ServiceError, Unavailable
from tenants.admin.admin import TenantAdmin
from tenants.admin.seed import ADMIN_FILE, read_env
from tenants.changes.edits import AdminError
from tenants.records import keyspace
from tenants.records.fields import iso, parse_moment
from tenants.records.schema import RecordError
from tenants.store import errors
from tenants.store.connection import describe
from tenants.store.store import TenantStore

T = TypeVar("T")


@dataclass
class Chosen:
    """What the command line says for all commands: the store's URL, "" for the known one."""

    url: str = ""
    unchecked: bool = False


TIMEOUT_S = 5.0
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SILENT = logging.NullHandler()


def run(context: typer.Context, task: Callable[[TenantAdmin, TenantStore], Awaitable[T]]) -> T:
    """Connect, do it, and turn every error that a person can mend into one line."""
    url = context.obj.url or _known_url()
    if not url:
        raise failure("no store is known: give --redis-url, set REDIS_URL, or run in the folder of a started server")
    # Its one line says what a log would.
    logging.getLogger().addHandler(_SILENT)
    try:
        return asyncio.run(_connected(url, TIMEOUT_S, task, context.obj.unchecked))
    except Unavailable as error:
        raise failure(errors.explain(error, describe(url))) from None
    except ServiceError as error:
        raise failure(error.message) from None
    except (AdminError, RecordError, ValueError, OSError) as error:
        raise failure(str(error)) from None


def _known_url() -> str:
    return read_env(Path(".data") / ADMIN_FILE).get("REDIS_URL", "")


async def _connected(
    url: str, timeout_s: float, task: Callable[[TenantAdmin, TenantStore], Awaitable[T]], unchecked: bool = False
) -> T:
    async with await TenantStore.connect(url, timeout_s=timeout_s) as store:
        return await task(TenantAdmin(store, unchecked=unchecked), store)


def failure(message: str) -> typer.Exit:
    """Say what is wrong; raise what it returns."""
    typer.echo(f"tenants: {message}", err=True)
    return typer.Exit(1)


def assignments(words: Sequence[str], remove: Sequence[str] = ()) -> dict[str, str | None]:
    """FIELD=VALUE words as a mapping, with None for each field to remove.

    An empty value is refused: it is what an unset variable of a shell leaves, and without a limit there is none.
    """
    changes: dict[str, str | None] = {}
    for word in words:
        # A class may hold '=', and so may a value; but a strength, a class's value, may not.
        split = word.rpartition if word.startswith("focus:") else word.partition
        name, mark, value = split("=")
        _assign(changes, word, name, mark, value)
    for name in remove:
        if not name or name in changes:
            raise failure(f"--remove takes the name of a field that is not set as well, not '{name}'.")
        changes[name] = None
    if not changes:
        raise failure("give at least one FIELD=VALUE, or --remove FIELD.")
    return changes


def strengths(words: Sequence[str]) -> dict[str, float]:
    """CLASS=STRENGTH words as a mapping."""
    texts: dict[str, str | None] = {}
    for word in words:
        _assign(texts, word, *word.rpartition("="))
    found = {}
    for term, text in texts.items():
        try:
            found[term] = float(text or "")
        except ValueError:
            raise failure(f"the strength of '{term}' must be a number in (-1, 1), not '{text}'.") from None
    return found


def _assign(into: dict[str, str | None], word: str, name: str, mark: str, value: str) -> None:
    if not mark or not name:
        raise failure(f"expected FIELD=VALUE, not '{word}'.")
    if not value.strip():
        raise failure(f"'{name}' is given no value (an empty variable?); to remove the field: --remove {name}")
    if name in into:
        raise failure(f"'{name}' is given twice.")
    into[name] = value


def given(option: str, value: str | None) -> str | None:
    """An option's value. Refuses an empty one, which is what an unset variable of a shell leaves."""
    if value is not None and not value.strip():
        raise failure(f"{option} is given no value (an empty variable?); leave it out, or give one.")
    return value


def span(text: str, option: str) -> int:
    """Seconds of a span such as 24h."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise failure(f"{option} takes a span such as 24h, 30m or 0s, not '{text}'.")
    return int(match[1]) * _SECONDS[match[2]]


def moment(option: str, text: str | None) -> float | None:
    """Unix seconds of an option that takes a span from now or a date to come; None where it is not given."""
    if given(option, text) is None or text is None:
        return None
    if re.fullmatch(r"\d{1,6}[smhd]", text):
        return time.time() + span(text, option)
    try:
        found = parse_moment(text)
    except ValueError:
        raise failure(f"{option} takes 30d, 12h, 45m or a date such as 2030-01-31, not '{text}'.") from None
    if found <= time.time():
        raise failure(f"{option} lies in the past: {text}.")
    return found


def when(begins: float | None, ends: float | None) -> str:
    """When a change holds, as the end of a sentence."""
    return (f" at {iso(begins)}" if begins else "") + (f" until {iso(ends)}" if ends else "")


def _names(prefix: str, incomplete: str) -> list[str]:
    """For the shell's Tab key: what begins with a word; nothing where the store is not reached at once."""
    url = os.environ.get("REDIS_URL") or _known_url()
    logging.getLogger().addHandler(_SILENT)
    try:
        names = asyncio.run(_connected(url, 0.5, lambda admin, _: admin.names(prefix, incomplete))) if url else []
    except (ServiceError, ValueError, OSError):
        return []
    return names


def complete_tenant(incomplete: str) -> list[str]:
    """Tenant ids that begin with a word."""
    return _names(keyspace.TENANT, incomplete)


def complete_tier(incomplete: str) -> list[str]:
    """Tier names that begin with a word."""
    return _names(keyspace.TIER, incomplete)


def complete_project(incomplete: str) -> list[str]:
    """Project ids that begin with a word."""
    return _names(keyspace.PROJECT, incomplete)


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Assignments = Annotated[list[str] | None, typer.Argument(metavar="FIELD=VALUE", help="Fields to set.")]
At = Annotated[
    str | None, typer.Option("--at", metavar="WHEN", help="Then, and not now: 2030-01-31, 2030-01-31T12:00Z, or 14d.")
]
Remove = Annotated[list[str] | None, typer.Option("--remove", metavar="FIELD", help="Remove a field; repeat it.")]
TenantId = Annotated[str, typer.Argument(metavar="TENANT", help="Tenant id.", autocompletion=complete_tenant)]
TierName = Annotated[str, typer.Argument(metavar="TIER", help="Tier name.", autocompletion=complete_tier)]
KeyReference = Annotated[str, typer.Argument(metavar="KEY", help="Its id, its prefix (sk-acme-...abcd) or itself.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
