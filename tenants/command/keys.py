"""`tenants key`: API keys, from the day they are made to the day they are revoked."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tenants.admin import views
from tenants.admin.admin import TenantAdmin
from tenants.admin.settings import read_settings
from tenants.command import show
from tenants.command.console import (
    Assignments,
    Json,
    KeyReference,
    Remove,
    TenantId,
    assignments,
    given,
    moment,
    run,
    span,
)
from tenants.records.fields import iso
from tenants.records.schema import KeyRecord, RecordError
from tenants.store.store import TenantStore

app = typer.Typer(help="API keys.", no_args_is_help=True)


@app.command("create")
def create_key(
    context: typer.Context,
    tenant: TenantId,
    label: Annotated[str, typer.Option(help="A note for people.")] = "",
    expires: Annotated[str | None, typer.Option(help="A span such as 30d, 12h, 45m, or a date.")] = None,
    scopes: Annotated[
        str | None,
        typer.Option(help="Comma list of inference, entitlements (read only), usage, model:<id>; none: all."),
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE", help="A limit of this key, such as rpm=60; repeat it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Create a key. It is shown once."""
    expires_at = moment("--expires", expires)
    wanted = None if given("--scopes", scopes) is None else [s.strip() for s in (scopes or "").split(",") if s.strip()]
    limits = assignments(limit) if limit else {}
    secret, record = run(
        context,
        lambda admin, _: admin.create_key(tenant, label=label, expires_at=expires_at, scopes=wanted, limits=limits),
    )
    _say(secret, record, as_json)


@app.command("rotate")
def rotate_key(
    context: typer.Context,
    key: KeyReference,
    overlap: Annotated[str, typer.Option(help="How long the old key goes on: 24h, 30m, 0s.")] = "24h",
    as_json: Json = False,
) -> None:
    """Make a new key like an old one, which ends after an overlap."""
    secret, record, old = run(context, lambda admin, _: admin.rotate_key(key, overlap_s=span(overlap, "--overlap")))
    _say(secret, record, as_json, replaces=old)


@app.command("list")
def list_keys(context: typer.Context, tenant: TenantId, as_json: Json = False) -> None:
    """List a tenant's keys; one older than `tenants settings` allows is said to be due."""

    async def read(admin: TenantAdmin, store: TenantStore) -> Any:
        await admin.tenant(tenant)
        return await admin.keys(tenant), (await read_settings(store)).key_max_age_days

    found, most_days = run(context, read)
    show.keys(found, as_json, most_days)


@app.command("set")
def set_key(
    context: typer.Context, key: KeyReference, fields: Assignments = None, remove: Remove = None, as_json: Json = False
) -> None:
    """Set limits, scopes, label or expires_at of a key: rpm=60 scopes=model:resnet18-cifar10."""
    changes = assignments(fields or [], remove or [])
    record = run(context, lambda admin, _: admin.set_key(key, changes))
    show.done(views.key(record), f"Set {', '.join(changes)} of key {record.id}.", as_json)


@app.command("revoke")
def revoke_key(context: typer.Context, key: KeyReference, as_json: Json = False) -> None:
    """Revoke a key: its next request is refused."""
    record = run(context, lambda admin, _: admin.revoke_key(key))
    if isinstance(record, RecordError):
        show.done(views.problem(record), f"Revoked, though its record is not valid: {record}", as_json)
    else:
        show.done(views.key(record), f"Revoked key {record.id} of {record.tenant}.", as_json)


def _say(secret: str, record: KeyRecord, as_json: bool, *, replaces: KeyRecord | None = None) -> None:
    if as_json:
        show.done({"key": secret, **views.key(record)}, "", True)
        return
    typer.echo(secret)
    until = f" It expires at {iso(record.expires_at)}." if record.expires_at else ""
    old = f" Key {replaces.id} ends at {iso(replaces.expires_at or 0.0)}." if replaces else ""
    typer.echo(f"Key {record.id} of {record.tenant}. Keep it now: it is not shown again.{until}{old}", err=True)
