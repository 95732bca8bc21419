"""The `tenants` command: tiers, tenants, keys, usage and the audit trail, from a shell."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tenants import (
    cli_installation,
    cli_keys,
    cli_manifest,
    cli_models,
    cli_receipts,
    cli_tiers,
    cli_usage,
    installation,
    keyspace,
    served_levels,
    show,
)
from tenants.admin import TenantAdmin
from tenants.console import Assignments, Json, TenantId, Yes, assignments, complete_tier, failure, run
from tenants.served import ServedModels
from tenants.store import TenantStore

app = typer.Typer(help="Manage tiers, tenants and API keys.", no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(cli_tiers.app, name="tier")
app.add_typer(cli_keys.app, name="key")
app.add_typer(cli_usage.app, name="usage")
app.command()(cli_installation.init)
app.command()(cli_manifest.apply)
app.command()(cli_manifest.export)
app.command()(cli_models.levels)
app.command()(cli_models.calibrate)
app.command()(cli_receipts.verify)


@app.callback()
def main(
    context: typer.Context,
    redis_url: Annotated[
        str, typer.Option(envvar="REDIS_URL", help="The store; default: what .data/demo.env says.", show_envvar=True)
    ] = "",
) -> None:
    """Manage tiers, tenants and API keys. Edits reach every gateway at once."""
    context.obj = redis_url


@app.command("list")
def list_tenants(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="Most tenants to show.")] = 100,
    after: Annotated[str, typer.Option(help="Begin behind this tenant id.")] = "",
    as_json: Json = False,
) -> None:
    """List tenants in the order of their ids, a page at a time."""

    async def read(admin: TenantAdmin, _: TenantStore) -> Any:
        ids = [name for name in await admin.names(keyspace.TENANT) if name > after]
        return await admin.tenants(ids[:limit]), len(ids) - limit

    page, left = run(context, read)
    show.tenants(page, as_json)
    if left > 0:
        typer.echo(f"{left} more: tenants list --after {list(page)[-1]}", err=True)


@app.command("show")
def show_tenant(context: typer.Context, tenant: TenantId, as_json: Json = False) -> None:
    """Show one tenant: its tier, overrides and standing focus."""
    show.tenant(run(context, lambda admin, _: admin.tenant(tenant)), as_json)


@app.command("create")
def create_tenant(
    context: typer.Context,
    tenant: TenantId,
    tier: Annotated[str, typer.Option(help="An existing tier.", autocompletion=complete_tier)],
    name: Annotated[str, typer.Option(help="Name for people; default: the id.")] = "",
    as_json: Json = False,
) -> None:
    """Create a tenant."""
    record = run(context, lambda admin, _: admin.create_tenant(tenant, tier=tier, name=name))
    show.done(show.tenant_fields(record), f"Created {tenant} ({tier}). Next: tenants key create {tenant}", as_json)


@app.command("set")
def set_tenant(context: typer.Context, tenant: TenantId, fields: Assignments, as_json: Json = False) -> None:
    """Set fields of a tenant: tier=gold rpm=600 utility:resnet18-cifar10=0.8."""
    changes = assignments(fields)
    record = run(context, lambda admin, _: admin.set_tenant(tenant, changes))
    show.done(show.tenant_fields(record), f"Set {', '.join(changes)} of {tenant}.", as_json)


@app.command("focus")
def set_focus(
    context: typer.Context,
    tenant: TenantId,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model id.")],
    strengths: Annotated[
        list[str] | None,
        typer.Argument(metavar="CLASS=STRENGTH", help="In (-1, 1); 0 removes it; none: show the focus."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Set a tenant's standing focus on a model: pedestrian=0.9."""
    wanted = {term: _strength(term, text) for term, text in assignments(strengths or []).items()}
    if wanted:
        record = run(context, lambda admin, _: admin.set_focus(tenant, model, wanted))
    else:
        record = run(context, lambda admin, _: admin.tenant(tenant))
    left = record.standing_focus.get(model, {})
    shown = ", ".join(f"{term}={f:g}" for term, f in left.items()) or "none"
    show.done(dict(left), f"Focus of {tenant} on {model}: {shown}", as_json)


@app.command()
def suspend(context: typer.Context, tenant: TenantId, as_json: Json = False) -> None:
    """Refuse every request of a tenant, until it is activated."""
    record = run(context, lambda admin, _: admin.set_tenant(tenant, {"status": "suspended"}))
    show.done(show.tenant_fields(record), f"Suspended {tenant}.", as_json)


@app.command()
def activate(context: typer.Context, tenant: TenantId, as_json: Json = False) -> None:
    """Take a suspended tenant's requests again."""
    record = run(context, lambda admin, _: admin.set_tenant(tenant, {"status": "active"}))
    show.done(show.tenant_fields(record), f"Activated {tenant}.", as_json)


@app.command("delete")
def delete_tenant(context: typer.Context, tenant: TenantId, yes: Yes = False, as_json: Json = False) -> None:
    """Delete a tenant and its keys. Its usage stays."""
    if not yes:
        typer.confirm(f"Delete {tenant} and its keys?", abort=True, err=True)
    keys = run(context, lambda admin, _: admin.delete_tenant(tenant))
    show.done({"deleted": tenant, "keys": keys}, f"Deleted {tenant} and {keys} keys.", as_json)


@app.command()
def audit(
    context: typer.Context,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100_000, help="How many.")] = 50,
    as_json: Json = False,
) -> None:
    """Show the last changes made by this command, the newest first."""
    show.audit(run(context, lambda admin, _: admin.audit(count)), as_json)


@app.command()
def check(context: typer.Context, as_json: Json = False) -> None:
    """Validate every record and judge every level in use; one line for each that is wrong, and exit status 1."""

    async def read(admin: TenantAdmin, store: TenantStore) -> Any:
        reports = await ServedModels(store).reports()
        strangers = await installation.strangers(store, reports)
        return [*await admin.check(), *strangers], served_levels.drifted(reports)

    problems, drifted = run(context, read)
    lines = [str(problem) for problem in problems] or ["All records are valid."]
    lines += [show.drift(*level) for level in drifted]
    found = [show.problem(problem) for problem in problems]
    found += [{"key": m, "field": f"{own.level:g}", "problem": show.drift(m, group, own)} for m, group, own in drifted]
    show.done(found, "\n".join(lines), as_json)
    if found:
        raise typer.Exit(1)


def _strength(term: str, text: str | None) -> float:
    try:
        return float(text or "0")
    except ValueError:
        raise failure(f"the strength of '{term}' must be a number in (-1, 1), not '{text}'.") from None


if __name__ == "__main__":
    app(prog_name="tenants")
