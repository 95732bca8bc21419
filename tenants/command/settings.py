"""`tenants settings` and `tenants webhook`: what holds for the whole installation, and where alerts are sent."""

from __future__ import annotations

from typing import Annotated

import typer

from tenants.admin import settings as admin_settings
from tenants.command import show
from tenants.command.console import Assignments, Json, Remove, assignments, run
from tenants.metering import alerts

app = typer.Typer(help="What holds for the whole installation.", no_args_is_help=True)
webhooks = typer.Typer(help="Where alerts are sent.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The webhook's name.")]


@app.command("show")
def show_settings(context: typer.Context, as_json: Json = False) -> None:
    """Show what is set."""
    found = run(context, lambda _, store: admin_settings.read_settings(store)).model_dump()
    show.print_json(found) if as_json else show.print_table(
        ("setting", "value"), [(name, "none" if value is None else str(value)) for name, value in found.items()]
    )


@app.command("set")
def set_settings(
    context: typer.Context, fields: Assignments = None, remove: Remove = None, as_json: Json = False
) -> None:
    """Set key_max_age_days, usage_days or events_days: tenants settings set key_max_age_days=90."""
    changes = assignments(fields or [], remove or [])
    found = run(context, lambda admin, store: admin_settings.change_settings(store, admin.log, changes))
    show.done(found.model_dump(), f"Set {', '.join(changes)}.", as_json)


@webhooks.command("list")
def list_webhooks(context: typer.Context, as_json: Json = False) -> None:
    """List addresses."""
    found = run(context, lambda _, store: admin_settings.webhooks(store))
    show.print_json(found) if as_json else show.print_table(("name", "URL"), found.items())


@webhooks.command("set")
def set_webhook(
    context: typer.Context,
    name: Name,
    url: Annotated[str, typer.Argument(metavar="URL", help="https://..., or http:// on this machine's loopback.")],
    as_json: Json = False,
) -> None:
    """Send alerts to an address too. The secret that signs them is shown once."""
    secret = run(context, lambda admin, store: admin_settings.set_webhook(store, admin.log, name, url))
    if as_json:
        return show.print_json({"name": name, "url": url, "secret": secret})
    typer.echo(secret)
    typer.echo(f"Alerts go to {name}, signed with this. Keep it now: it is not shown again.", err=True)
    return None


@webhooks.command("remove")
def remove_webhook(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Send nothing to an address any more."""
    run(context, lambda admin, store: admin_settings.remove_webhook(store, admin.log, name))
    show.done({"removed": name}, f"Removed the webhook {name}.", as_json)


@webhooks.command("test")
def test_webhook(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Have a running gateway send an alert to one address, that says that it is a test."""
    number = run(context, lambda _, store: alerts.test(store, name))
    show.done({"id": number}, f"Asked for a test, {number}: a gateway sends it within seconds.", as_json)
