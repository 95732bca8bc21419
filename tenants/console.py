"""What every `tenants` command shares: its options, the store, mistakes in one line, and completion."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from policies.errors import ServiceError, Unavailable
from tenants import keyspace, refusals
from tenants.admin import TenantAdmin
from tenants.connection import describe
from tenants.edits import AdminError
from tenants.records import RecordError
from tenants.seed import ENV_FILE, read_env
from tenants.store import TenantStore

T = TypeVar("T")
TIMEOUT_S = 5.0
_SILENT = logging.NullHandler()


def run(context: typer.Context, task: Callable[[TenantAdmin, TenantStore], Awaitable[T]]) -> T:
    """Connect, do it, and turn every error that a person can mend into one line."""
    url = context.obj or _known_url()
    if not url:
        raise failure("no store is known: give --redis-url, set REDIS_URL, or run in the folder of a started server")
    # Its one line says what a log would.
    logging.getLogger().addHandler(_SILENT)
    try:
        return asyncio.run(_connected(url, TIMEOUT_S, task))
    except Unavailable as error:
        raise failure(refusals.explain(error, describe(url))) from None
    except ServiceError as error:
        raise failure(error.message) from None
    except (AdminError, RecordError, ValueError, OSError) as error:
        raise failure(str(error)) from None


def _known_url() -> str:
    return read_env(Path(".data") / ENV_FILE).get("REDIS_URL", "")


async def _connected(url: str, timeout_s: float, task: Callable[[TenantAdmin, TenantStore], Awaitable[T]]) -> T:
    async with await TenantStore.connect(url, timeout_s=timeout_s) as store:
        return await task(TenantAdmin(store), store)


def failure(message: str) -> typer.Exit:
    """Say what is wrong; raise what it returns."""
    typer.echo(f"tenants: {message}", err=True)
    return typer.Exit(1)


def assignments(words: list[str]) -> dict[str, str | None]:
    """FIELD=VALUE words as a mapping; nothing after the mark removes a field."""
    changes: dict[str, str | None] = {}
    for word in words:
        # A class name may hold '='; a value never does.
        name, mark, value = word.rpartition("=")
        if not mark or not name:
            raise failure(f"expected FIELD=VALUE, not '{word}'.")
        changes[name] = value or None
    return changes


def _names(prefix: str, incomplete: str) -> list[str]:
    """For the shell's Tab key: what begins with a word; nothing where the store is not reached at once."""
    url = os.environ.get("REDIS_URL") or _known_url()
    logging.getLogger().addHandler(_SILENT)
    try:
        names = asyncio.run(_connected(url, 0.5, lambda admin, _: admin.names(prefix))) if url else []
    except (ServiceError, ValueError, OSError):
        return []
    return [name for name in names if name.startswith(incomplete)]


def complete_tenant(incomplete: str) -> list[str]:
    """Tenant ids that begin with a word."""
    return _names(keyspace.TENANT, incomplete)


def complete_tier(incomplete: str) -> list[str]:
    """Tier names that begin with a word."""
    return _names(keyspace.TIER, incomplete)


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Assignments = Annotated[list[str], typer.Argument(metavar="FIELD=VALUE", help="An empty value removes the field.")]
TenantId = Annotated[str, typer.Argument(metavar="TENANT", help="Tenant id.", autocompletion=complete_tenant)]
TierName = Annotated[str, typer.Argument(metavar="TIER", help="Tier name.", autocompletion=complete_tier)]
KeyReference = Annotated[str, typer.Argument(metavar="KEY", help="Its id, its prefix (sk-acme-...abcd) or itself.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
