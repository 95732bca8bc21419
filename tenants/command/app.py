"""The `tenants` command: tiers, tenants, keys, usage and the audit trail, from a shell."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tenants.admin import installation as installed
from tenants.admin import views
from tenants.admin.admin import TenantAdmin
from tenants.command import (
    exports,
    installation,
    keys,
    manifest,
    models,
    operators,
    plans,
    projects,
    receipts,
    settings,
    show,
    tiers,
    usage,
)
from tenants.command.console import (
    Assignments,
    At,
    Chosen,
    Json,
    Remove,
    TenantId,
    Yes,
    assignments,
    complete_tier,
    failure,
    given,
    moment,
    run,
    strengths,
    when,
)
from tenants.records import keyspace, schedule
from tenants.reports import levels
from tenants.reports.replicas import ServedModels
from tenants.store.store import TenantStore

app = typer.Typer(help="Manage tiers, tenants and API keys.", no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(tiers.app, name="tier")
app.add_typer(plans.prices, name="price")
app.add_typer(plans.plans, name="plan")
app.add_typer(keys.app, name="key")
app.add_typer(projects.app, name="project")
app.add_typer(operators.app, name="admin-key")
app.add_typer(usage.app, name="usage")
app.add_typer(settings.app, name="settings")
app.add_typer(settings.webhooks, name="webhook")
usage.app.command("export")(exports.export)
usage.app.command("send")(exports.send)
app.command()(installation.init)
app.command()(manifest.apply)
app.command()(manifest.export)
app.command()(models.levels)
app.command()(models.calibrate)
app.command()(receipts.verify)


@app.callback()
def main(
    context: typer.Context,
    redis_url: Annotated[
        str | None,
        typer.Option(envvar="REDIS_URL", help="The store; default: what .data/admin.env says.", show_envvar=True),
    ] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Take models and classes too that no replica has served yet.")
    ] = False,
) -> None:
    """Manage tiers, tenants and API keys. Edits reach every gateway at once."""
    context.obj = Chosen(given("--redis-url", redis_url) or "", unchecked)


@app.command("list")
def list_tenants(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="Most tenants to show.")] = 100,
    after: Annotated[str, typer.Option(help="Begin behind this tenant id.")] = "",
    as_json: Json = False,
) -> None:
    """List tenants in the order of their ids, a page at a time."""

    async def read(admin: TenantAdmin, _: TenantStore) -> Any:
        ids, left = await admin.page(keyspace.TENANT, after=after, limit=limit)
        return await admin.tenants(ids), left

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
    until: Annotated[
        str | None, typer.Option(metavar="WHEN", help="A trial: of that tier until 2030-01-31, or for 14d.")
    ] = None,
    then: Annotated[
        str | None, typer.Option(metavar="TIER", help="Its tier after that.", autocompletion=complete_tier)
    ] = None,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Go on with the usage of a deleted tenant of this id.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Create a tenant."""
    if (until is None) != (then is None):
        raise failure("--until and --then go together: when a trial ends, and which tier follows.")
    ends = moment("--until", until)
    later = {schedule.name(ends, "tier", then): given("--then", then)} if ends else {}
    record = run(context, lambda admin, _: admin.create_tenant(tenant, tier=tier, name=name, fields=later, reuse=reuse))
    show.done(views.tenant_fields(record), f"Created {tenant} ({tier}). Next: tenants key create {tenant}", as_json)


@app.command("set")
def set_tenant(
    context: typer.Context,
    tenant: TenantId,
    fields: Assignments = None,
    remove: Remove = None,
    at: At = None,
    until: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Then each is again what it is now: 2030-01-31, or 14d.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Set fields of a tenant: tier=gold rpm=600 utility:resnet18-cifar10=0.8."""
    changes = assignments(fields or [], remove or [])
    begins, ends = moment("--at", at), moment("--until", until)
    record = run(context, lambda admin, _: admin.set_tenant(tenant, changes, at=begins, until=ends))
    done = f"Set {', '.join(changes)} of {tenant}{when(begins, ends)}."
    show.done(views.tenant_fields(record), done, as_json)


@app.command("focus")
def set_focus(
    context: typer.Context,
    tenant: TenantId,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model id.")],
    terms: Annotated[
        list[str] | None,
        typer.Argument(metavar="CLASS=STRENGTH", help="In (-1, 1); 0 removes it; none: show the focus."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Set a tenant's standing focus on a model: pedestrian=0.9."""
    wanted = strengths(terms or [])
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
    show.done(views.tenant_fields(record), f"Suspended {tenant}.", as_json)


@app.command()
def activate(context: typer.Context, tenant: TenantId, as_json: Json = False) -> None:
    """Take a suspended tenant's requests again."""
    record = run(context, lambda admin, _: admin.set_tenant(tenant, {"status": "active"}))
    show.done(views.tenant_fields(record), f"Activated {tenant}.", as_json)


@app.command("delete")
def delete_tenant(context: typer.Context, tenant: TenantId, yes: Yes = False, as_json: Json = False) -> None:
    """Delete a tenant and its keys. Its usage stays."""
    if not yes:
        typer.confirm(f"Delete {tenant} and its keys?", abort=True, err=True)
    keys = run(context, lambda admin, _: admin.delete_tenant(tenant))
    show.done({"deleted": tenant, "keys": keys}, f"Deleted {tenant} and {keys} keys.", as_json)


@app.command("schedule")
def to_come(context: typer.Context, as_json: Json = False) -> None:
    """Show what tiers and tenants will change by themselves."""
    show.schedule(run(context, lambda admin, _: admin.to_come()), as_json)


@app.command()
def audit(
    context: typer.Context,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100_000, help="How many.")] = 50,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that no line was changed or taken out; status 1 if one was.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the last changes with old and new values, the newest first."""
    if not verify:
        show.audit(run(context, lambda admin, _: admin.log.read(count)), as_json)
        return
    found = run(context, lambda admin, _: admin.log.verify())
    wrong = ", ".join(str(number) for number in found["broken"][:20])
    said = f"lines that do not follow the one before: {wrong}" if wrong else "every line follows the one before"
    show.done(found, f"{found['entries']} entries, {said}. Head: {found['head']}", as_json)
    if wrong:
        raise typer.Exit(1)


@app.command()
def check(context: typer.Context, as_json: Json = False) -> None:
    """Validate every record and judge every level in use; one line for each that is wrong, and exit status 1."""

    async def read(admin: TenantAdmin, store: TenantStore) -> Any:
        reports = await ServedModels(store).reports()
        strangers = await installed.strangers(store, reports)
        problems = await admin.check() + await admin.old_keys()
        return [*problems, *strangers, *await installed.unmarked(store)], levels.drifted(reports)

    problems, drifted = run(context, read)
    lines = [str(problem) for problem in problems] or ["All records are valid."]
    lines += [show.drift(*level) for level in drifted]
    found = [views.problem(problem) for problem in problems]
    found += [{"key": m, "field": f"{own.level:g}", "problem": show.drift(m, group, own)} for m, group, own in drifted]
    show.done(found, "\n".join(lines), as_json)
    if found:
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="tenants")
