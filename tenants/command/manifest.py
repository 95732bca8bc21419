"""`tenants apply` and `tenants export`: tiers and tenants as a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tenants.admin import manifest
from tenants.admin.admin import TenantAdmin
from tenants.command import show
from tenants.command.console import Json, Yes, failure, run
from tenants.store.store import TenantStore


def apply(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML as `tenants export` writes it; - is stdin.")],
    prune: Annotated[bool, typer.Option("--prune", help="Delete tiers and tenants that the file lacks.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference and change nothing.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Make tiers and tenants what a file says. The difference is shown first; keys and usage are left alone."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        raise failure(f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise failure(f"{file} is not UTF-8 text.") from None

    async def planned(admin: TenantAdmin, _: TenantStore) -> list[manifest.Step]:
        return manifest.plan(manifest.parse(text), await manifest.current(admin), prune=prune)

    steps = run(context, planned)
    show.steps(steps, as_json)
    if not steps or dry_run:
        return
    changes = f"{len(steps)} change{'s' if len(steps) > 1 else ''}"
    if not yes:
        if str(file) == "-":
            raise failure("the file came from stdin, so nobody can be asked: give --yes, or --dry-run.")
        typer.confirm(f"Make {changes}?", abort=True, err=True)
    run(context, lambda admin, _: manifest.apply(admin, steps))
    typer.echo(f"Made {changes}.", err=as_json)


def export(context: typer.Context, as_json: Json = False) -> None:
    """Print all tiers and tenants as a file for `tenants apply`."""
    records = run(context, lambda admin, _: manifest.current(admin)).records
    show.done(records, manifest.export(records).rstrip(), as_json)
