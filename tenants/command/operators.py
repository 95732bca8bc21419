"""`tenants admin-key`: who may administrate over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from tenants.admin import views
from tenants.admin.operators import Operators, Role
from tenants.command import show
from tenants.command.console import Json, moment, run
from tenants.records.fields import iso

app = typer.Typer(help="Keys of people who administrate over HTTP.", no_args_is_help=True)


@app.command("create")
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is; the audit log says so.")],
    role: Annotated[Role, typer.Option(help="viewer reads; support: keys, focus; billing: tiers, limits; owner: all.")],
    expires: Annotated[str | None, typer.Option(help="A span such as 30d, 12h, 45m, or a date.")] = None,
    as_json: Json = False,
) -> None:
    """Create an admin key. It is shown once."""
    ends = moment("--expires", expires)
    secret, own = run(context, lambda admin, store: Operators(store, admin.log).create(name, role, expires_at=ends))
    if as_json:
        show.done({"key": secret, **views.operator(own)}, "", True)
        return
    typer.echo(secret)
    until = f" It expires at {iso(own.expires_at)}." if own.expires_at else ""
    typer.echo(f"Admin key {own.id} of {name} ({role}). Keep it now: it is not shown again.{until}", err=True)


@app.command("list")
def list_keys(context: typer.Context, as_json: Json = False) -> None:
    """List admin keys."""
    show.operators(run(context, lambda admin, store: Operators(store, admin.log).all()), as_json)


@app.command("revoke")
def revoke(
    context: typer.Context,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id, 8 digits or more.")],
    as_json: Json = False,
) -> None:
    """Revoke an admin key: its next request is refused."""
    shown = run(context, lambda admin, store: Operators(store, admin.log).revoke(key))
    show.done({"revoked": shown}, f"Revoked admin key {shown}.", as_json)
