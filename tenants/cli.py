"""The `tenants` command: tiers, tenants, keys, usage and the audit trail, from a shell."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from policies.errors import ServiceError
from tenants import show
from tenants.admin import TenantAdmin
from tenants.edits import AdminError
from tenants.fields import iso, parse_moment
from tenants.records import RecordError
from tenants.seed import ENV_FILE, read_env
from tenants.store import TenantStore
from tenants.usage import read_days, read_usage

T = TypeVar("T")
TIMEOUT_S = 5.0
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Assignments = Annotated[list[str], typer.Argument(metavar="FIELD=VALUE...", help="An empty value removes the field.")]
TenantId = Annotated[str, typer.Argument(metavar="TENANT", help="Tenant id.")]
TierName = Annotated[str, typer.Argument(metavar="TIER", help="Tier name.")]

app = typer.Typer(help="Manage tiers, tenants and API keys.", no_args_is_help=True, pretty_exceptions_enable=False)
tier_app = typer.Typer(help="Tiers: what is sold.", no_args_is_help=True)
key_app = typer.Typer(help="API keys.", no_args_is_help=True)
app.add_typer(tier_app, name="tier")
app.add_typer(key_app, name="key")


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
def list_tenants(context: typer.Context, as_json: Json = False) -> None:
    """List tenants."""
    show.tenants(_run(context, lambda admin, _: admin.tenants()), as_json)


@app.command("show")
def show_tenant(context: typer.Context, tenant: TenantId, as_json: Json = False) -> None:
    """Show one tenant: its tier, overrides and standing focus."""
    show.tenant(_run(context, lambda admin, _: admin.tenant(tenant)), as_json)


@app.command("create")
def create_tenant(
    context: typer.Context,
    tenant: TenantId,
    tier: Annotated[str, typer.Option(help="An existing tier.")],
    name: Annotated[str, typer.Option(help="Name for people; default: the id.")] = "",
) -> None:
    """Create a tenant."""
    _run(context, lambda admin, _: admin.create_tenant(tenant, tier=tier, name=name))
    typer.echo(f"Created {tenant} ({tier}). Next: tenants key create {tenant}")


@app.command("set")
def set_tenant(context: typer.Context, tenant: TenantId, fields: Assignments) -> None:
    """Set fields of a tenant: tier=gold rpm=600 utility:resnet18-cifar10=0.8."""
    changes = _assignments(fields)
    _run(context, lambda admin, _: admin.set_tenant(tenant, changes))
    typer.echo(f"Set {', '.join(changes)} of {tenant}.")


@app.command("focus")
def set_focus(
    context: typer.Context,
    tenant: TenantId,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model id.")],
    strengths: Annotated[
        list[str] | None,
        typer.Argument(metavar="CLASS=STRENGTH...", help="In (-1, 1); 0 removes it; none: show the focus."),
    ] = None,
) -> None:
    """Set a tenant's standing focus on a model: pedestrian=0.9."""
    wanted = {term: _strength(term, text) for term, text in _assignments(strengths or []).items()}
    if wanted:
        record = _run(context, lambda admin, _: admin.set_focus(tenant, model, wanted))
    else:
        record = _run(context, lambda admin, _: admin.tenant(tenant))
    left = record.standing_focus.get(model, {})
    shown = ", ".join(f"{term}={f:g}" for term, f in left.items()) or "none"
    typer.echo(f"Focus of {tenant} on {model}: {shown}")


@app.command()
def suspend(context: typer.Context, tenant: TenantId) -> None:
    """Refuse every request of a tenant, until it is activated."""
    _run(context, lambda admin, _: admin.set_tenant(tenant, {"status": "suspended"}))
    typer.echo(f"Suspended {tenant}.")


@app.command()
def activate(context: typer.Context, tenant: TenantId) -> None:
    """Take a suspended tenant's requests again."""
    _run(context, lambda admin, _: admin.set_tenant(tenant, {"status": "active"}))
    typer.echo(f"Activated {tenant}.")


@app.command()
def usage(
    context: typer.Context,
    tenant: TenantId,
    days: Annotated[int, typer.Option(min=1, max=400, help="How many days back.")] = 7,
    month: Annotated[str, typer.Option(help="One month instead, yyyy-mm.")] = "",
    as_json: Json = False,
) -> None:
    """Show what a tenant has used, by UTC day and model."""
    if month and not re.fullmatch(r"\d{4}-\d{2}", month):
        raise _failure(f"--month must look like 2030-01, not {month}.")

    async def read(admin: TenantAdmin, store: TenantStore) -> Any:
        await admin.tenant(tenant)
        return await (read_usage(store, tenant, month) if month else read_days(store, tenant, days))

    show.usage(_run(context, read), as_json)


@app.command()
def audit(
    context: typer.Context,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100_000, help="How many.")] = 50,
    as_json: Json = False,
) -> None:
    """Show the last changes made by this command, the newest first."""
    show.audit(_run(context, lambda admin, _: admin.audit(count)), as_json)


@app.command()
def check(context: typer.Context) -> None:
    """Validate every record; one line for each that is wrong, and exit status 1."""
    problems = _run(context, lambda admin, _: admin.check())
    for problem in problems:
        typer.echo(str(problem))
    if problems:
        raise typer.Exit(1)
    typer.echo("All records are valid.")


@tier_app.command("list")
def list_tiers(context: typer.Context, as_json: Json = False) -> None:
    """List tiers."""
    show.tiers(_run(context, lambda admin, _: admin.tiers()), as_json)


@tier_app.command("show")
def show_tier(context: typer.Context, tier: TierName, as_json: Json = False) -> None:
    """Show one tier."""
    show.tier(_run(context, lambda admin, _: admin.tier(tier)), as_json)


@tier_app.command("create")
def create_tier(context: typer.Context, tier: TierName, fields: Assignments) -> None:
    """Create a tier: tenants tier create bronze utility=0.8 rpm=60."""
    changes = _assignments(fields)
    _run(context, lambda admin, _: admin.create_tier(tier, changes))
    typer.echo(f"Created tier {tier}.")


@tier_app.command("set")
def set_tier(context: typer.Context, tier: TierName, fields: Assignments) -> None:
    """Set fields of a tier: utility=0.8 rpm=60."""
    changes = _assignments(fields)
    _run(context, lambda admin, _: admin.set_tier(tier, changes))
    typer.echo(f"Set {', '.join(changes)} of tier {tier}.")


@key_app.command("create")
def create_key(
    context: typer.Context,
    tenant: TenantId,
    label: Annotated[str, typer.Option(help="A note for people.")] = "",
    expires: Annotated[str, typer.Option(help="A span such as 30d, 12h, 45m, or a date.")] = "",
    scopes: Annotated[str, typer.Option(help="Comma list; default: all.")] = "",
) -> None:
    """Create a key. It is shown once."""
    expires_at = _expiry(expires) if expires else None
    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()] or None
    secret, record = _run(
        context, lambda admin, _: admin.create_key(tenant, label=label, expires_at=expires_at, scopes=wanted)
    )
    typer.echo(secret)
    until = f" It expires at {iso(expires_at)}." if expires_at else ""
    typer.echo(f"Key {record.id} of {tenant}. Keep it now: it is not shown again.{until}", err=True)


@key_app.command("list")
def list_keys(context: typer.Context, tenant: TenantId, as_json: Json = False) -> None:
    """List a tenant's keys."""

    async def read(admin: TenantAdmin, _: TenantStore) -> Any:
        await admin.tenant(tenant)
        return await admin.keys(tenant)

    show.keys(_run(context, read), as_json)


@key_app.command("revoke")
def revoke_key(
    context: typer.Context,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id, its prefix (sk-acme-...abcd) or itself.")],
) -> None:
    """Revoke a key: its next request is refused."""
    record = _run(context, lambda admin, _: admin.revoke_key(key))
    typer.echo(f"Revoked key {record.id} of {record.tenant}.")


def _run(context: typer.Context, task: Callable[[TenantAdmin, TenantStore], Awaitable[T]]) -> T:
    """Connect, do it, and turn every error that a person can mend into one line."""
    url = context.obj or read_env(Path(".data") / ENV_FILE).get("REDIS_URL", "")
    if not url:
        raise _failure("no store is known: give --redis-url, set REDIS_URL, or run in the folder of a started server")

    async def connected() -> T:
        async with await TenantStore.connect(url, timeout_s=TIMEOUT_S) as store:
            return await task(TenantAdmin(store), store)

    try:
        return asyncio.run(connected())
    except ServiceError as error:
        raise _failure(error.message) from None
    except (AdminError, RecordError, ValueError, OSError) as error:
        raise _failure(str(error)) from None


def _failure(message: str) -> typer.Exit:
    typer.echo(f"tenants: {message}", err=True)
    return typer.Exit(1)


def _assignments(words: list[str]) -> dict[str, str]:
    changes = {}
    for word in words:
        # A class name may hold '='; a value never does.
        name, mark, value = word.rpartition("=")
        if not mark or not name:
            raise _failure(f"expected FIELD=VALUE, not '{word}'.")
        changes[name] = value
    return changes


def _strength(term: str, text: str) -> float:
    try:
        return float(text or "0")
    except ValueError:
        raise _failure(f"the strength of '{term}' must be a number in (-1, 1), not '{text}'.") from None


def _expiry(text: str) -> float:
    """Unix seconds at which a key expires that is given a span or a date."""
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    if match := re.fullmatch(r"(\d{1,6})([smhd])", text):
        return time.time() + int(match[1]) * seconds[match[2]]
    try:
        moment = parse_moment(text)
    except ValueError:
        raise _failure(f"--expires takes 30d, 12h, 45m or a date such as 2030-01-31, not '{text}'.") from None
    if moment <= time.time():
        raise _failure(f"--expires lies in the past: {text}.")
    return moment


if __name__ == "__main__":
    app(prog_name="tenants")
