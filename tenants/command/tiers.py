"""`tenants tier`: what is sold."""

from __future__ import annotations

import typer

from tenants.command import show
from tenants.command.console import Assignments, At, Json, Remove, TierName, Yes, assignments, moment, run, when

app = typer.Typer(help="Tiers: what is sold.", no_args_is_help=True)


@app.command("list")
def list_tiers(context: typer.Context, as_json: Json = False) -> None:
    """List tiers."""
    show.tiers(run(context, lambda admin, _: admin.tiers()), as_json)


@app.command("show")
def show_tier(context: typer.Context, tier: TierName, as_json: Json = False) -> None:
    """Show one tier."""
    show.tier(run(context, lambda admin, _: admin.tier(tier)), as_json)


@app.command("create")
def create_tier(context: typer.Context, tier: TierName, fields: Assignments = None, as_json: Json = False) -> None:
    """Create a tier: tenants tier create bronze utility=0.8 rpm=60."""
    changes = assignments(fields or [])
    record = run(context, lambda admin, _: admin.create_tier(tier, changes))
    show.tier(record, True) if as_json else typer.echo(f"Created tier {tier}.")


@app.command("set")
def set_tier(
    context: typer.Context,
    tier: TierName,
    fields: Assignments = None,
    remove: Remove = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Set fields of a tier: utility=0.8 rpm=60."""
    changes = assignments(fields or [], remove or [])
    begins = moment("--at", at)
    record = run(context, lambda admin, _: admin.set_tier(tier, changes, at=begins))
    done = f"Set {', '.join(changes)} of tier {tier}{when(begins, None)}."
    show.tier(record, True) if as_json else typer.echo(done)


@app.command("delete")
def delete_tier(context: typer.Context, tier: TierName, yes: Yes = False, as_json: Json = False) -> None:
    """Delete a tier that no tenant is of."""
    if not yes:
        typer.confirm(f"Delete tier {tier}?", abort=True, err=True)
    run(context, lambda admin, _: admin.delete_tier(tier))
    show.done({"deleted": tier}, f"Deleted tier {tier}.", as_json)
