"""`tenants price` and `tenants plan`: what answers cost, and who has signed which version of that."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tenants.admin import views
from tenants.admin.admin import TenantAdmin
from tenants.command import show
from tenants.command.console import Assignments, Json, Remove, Yes, assignments, complete_tenant, failure, run
from tenants.records import keyspace
from tenants.records.prices import parse_plan

prices = typer.Typer(help="Prices: versions of plans.", no_args_is_help=True)
plans = typer.Typer(help="Which version of a plan tenants have signed.", no_args_is_help=True)
PlanName = Annotated[str, typer.Argument(metavar="PLAN", help="A plan's name.")]
Version = Annotated[str, typer.Argument(metavar="PLAN[@N]", help="A version; without @N the newest.")]


@prices.command("list")
def list_plans(context: typer.Context, as_json: Json = False) -> None:
    """List every version of every plan."""
    show.plans(run(context, lambda admin, _: admin.plans()), as_json)


@prices.command("show")
def show_plan(context: typer.Context, plan: Version, as_json: Json = False) -> None:
    """Show the prices of a version, in millionths of its currency."""

    async def read(admin: TenantAdmin, _: object) -> dict[str, Any]:
        version = await admin.plan_version(plan)
        return views.plan_fields(parse_plan(version, (await admin.found(keyspace.plan(version))).whole))

    fields = run(context, read)
    show.print_json(fields) if as_json else show.print_table(
        ("price", fields.pop("plan")), [(name, str(value)) for name, value in fields.items()]
    )


@prices.command("set")
def set_prices(
    context: typer.Context, plan: PlanName, fields: Assignments = None, remove: Remove = None, as_json: Json = False
) -> None:
    """Make the next version of a plan: image=1500 image:MODEL:0.7=500 tokens_out_1m=600000 currency=EUR.

    In millionths of the currency. Nobody is moved to it: `tenants plan move` does that.
    """
    changes = assignments(fields or [], remove or [])
    made = run(context, lambda admin, _: admin.set_prices(plan, changes))
    show.done(
        {"plan": made.reference},
        f"Made {made.reference}. Nobody has it yet: tenants plan move {made.reference}",
        as_json,
    )


@prices.command("delete")
def delete_plan(
    context: typer.Context,
    plan: Annotated[str, typer.Argument(metavar="PLAN@N", help="A version.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete a version that no tier and no tenant has."""
    if not yes:
        typer.confirm(f"Delete {plan}?", abort=True, err=True)
    run(context, lambda admin, _: admin.delete_plan(plan))
    show.done({"deleted": plan}, f"Deleted {plan}.", as_json)


@plans.command("move")
def move(
    context: typer.Context,
    plan: Version,
    tenants: Annotated[
        list[str] | None, typer.Argument(metavar="TENANT...", autocompletion=complete_tenant, help="Who signs it.")
    ] = None,
    tier: Annotated[str, typer.Option(help="Every tenant of this tier, and who comes to it from now on.")] = "",
    as_json: Json = False,
) -> None:
    """Have tenants sign a version of a plan; what they have had so far is billed by what they had."""
    if bool(tenants) == bool(tier):
        raise failure("name tenants, or a tier by --tier.")

    async def moved(admin: TenantAdmin, _: object) -> tuple[str, list[str]]:
        ids = tenants or await admin.scan(keyspace.TENANT, where=("tier", tier))
        version = await admin.plan_version(plan)
        if tier:
            await admin.set_tier(tier, {"plan": version})
        await admin.move_plan(ids, version)
        return version, list(ids)

    version, ids = run(context, moved)
    show.done({"plan": version, "tenants": ids}, f"{len(ids)} tenants have {version} now.", as_json)
