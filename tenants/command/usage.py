"""`tenants usage`: what was used, and what an admin corrects or erases of it."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tenants.admin.admin import TenantAdmin
from tenants.admin.corrections import Corrections, What
from tenants.changes.edits import AdminError
from tenants.command import show, usage_tables
from tenants.command.console import Json, TenantId, Yes, assignments, complete_tier, failure, run
from tenants.metering.usage import asked_days, read_spent, read_usage
from tenants.records.prices import Plan, spoken
from tenants.records.schema import RecordError
from tenants.store.store import TenantStore


class _ShowIsMeant(TyperGroup):
    """`tenants usage acme` is `tenants usage show acme`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_ShowIsMeant, help="Show usage, and export it request by request.", no_args_is_help=True)


MOST_DAYS = 4000
"""Of one question."""


@app.command("show")
def show_usage(
    context: typer.Context,
    tenant: TenantId,
    first: Annotated[str, typer.Option("--from", metavar="DATE", help="First UTC day, 2030-01-31.")] = "",
    last: Annotated[str, typer.Option("--to", metavar="DATE", help="Last UTC day; default: today.")] = "",
    days: Annotated[int, typer.Option(min=1, max=400, help="How many days back, without --from.")] = 7,
    month: Annotated[str, typer.Option(metavar="YYYY-MM", help="The total of one month instead.")] = "",
    key: Annotated[str, typer.Option(help="Id of a key that has limits of its own: only what it used.")] = "",
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV: a line for each day, model, level, tier and key.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a tenant has used, by UTC day, model and level: `tenants usage acme`."""
    if month and (first or last):
        raise failure("--month goes without --from and --to.")
    if month:
        periods = [parse_day(f"{month}-01", "--month").isoformat()[:7]]
    else:
        begins, ends = parse_day(first, "--from") if first else None, parse_day(last, "--to") if last else None
        try:
            periods = asked_days(begins, ends, days, most=MOST_DAYS)
        except ValueError as error:
            raise failure(str(error).replace("`from`", "--from").replace("`to`", "--to")) from None

    async def read(admin: TenantAdmin, store: TenantStore) -> Any:
        found = await read_usage(store, tenant, *periods, key_id=key)
        if not any(any(period.total.values()) for period in found):
            await admin.tenant(tenant)  # a tenant that is gone may still have used something
        return found, [] if as_json or as_csv or key else await _budgets(admin, store, tenant)

    found, budgets = run(context, read)
    usage_tables.usage(found, as_json, as_csv)
    for line in budgets:
        typer.echo(line)


async def _budgets(admin: TenantAdmin, store: TenantStore, tenant: str) -> list[str]:
    """A line for each budget of a tenant, by what is settled; none of one that is gone or broken."""
    try:
        own = await admin.tenant(tenant)
        records = (own.overrides, (await admin.tier(own.tier)).terms)
        terms = {name: getattr(record, name) for record in reversed(records) for name in record.model_fields_set}
        plan = terms.get("plan")
        currency = (await admin.plans([plan]))[plan] if plan else None
    except (AdminError, RecordError, KeyError):
        return []
    spent = await read_spent(store, tenant, terms.get("billing_day", 1))
    known = currency.currency if isinstance(currency, Plan) else ""
    return [
        f"{name}: {spoken(used, known)} of {spoken(terms[name], known)} spent{f', by {plan}' if plan else ''}"
        for name, used in zip(("budget_day", "budget_month"), spent, strict=True)
        if terms.get(name) is not None
    ]


@app.command("adjust")
def adjust(
    context: typer.Context,
    tenant: TenantId,
    amounts: Annotated[
        list[str], typer.Argument(metavar="COUNTER=AMOUNT", help="requests=-3 tokens_out=-900; below 0 takes away.")
    ],
    why: Annotated[str, typer.Option(help="For the audit log, and for whoever imports the event.")],
    model: Annotated[str, typer.Option(help="Model id.")],
    level: Annotated[str, typer.Option(help="The level that it was counted at, 0.9.")],
    on: Annotated[str, typer.Option(metavar="DATE", help="UTC day, 2030-01-31; default: today.")] = "",
    tier: Annotated[str, typer.Option(help="The tier that it was counted for.", autocompletion=complete_tier)] = "-",
    key: Annotated[str, typer.Option(help="Id of the key that it was counted for.")] = "-",
    number: Annotated[
        str, typer.Option("--id", help="Of a correction whose answer was lost: it is booked unless it was.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Correct a line of a tenant's usage: an audited entry, and an event of its own kind for whoever bills it."""
    wanted = {name: _whole(name, text or "") for name, text in assignments(amounts).items()}
    day = parse_day(on, "--on") if on else datetime.now(UTC).date()
    what = What(tenant, day, model, level, tier, key)
    told, booked = run(context, lambda admin, store: Corrections(store, admin).adjust(what, wanted, why, number=number))
    said = f"Corrected usage of {tenant} on {day}: {told}." if booked else f"{told} was booked before; nothing changes."
    show.done({"id": told, "booked": booked}, said, as_json)


@app.command("erase")
def erase(context: typer.Context, tenant: TenantId, yes: Yes = False, as_json: Json = False) -> None:
    """Erase a tenant for good: its record and keys, all its usage, its events. The audit log stays."""
    if not yes:
        typer.confirm(f"Erase {tenant} with all its usage? What is not billed yet cannot be.", abort=True, err=True)
    erased = run(context, lambda admin, store: Corrections(store, admin).erase(tenant))
    told = ", ".join(f"{count} {what}" for what, count in erased.items())
    show.done({"erased": tenant, **erased}, f"Erased {tenant}: {told}.", as_json)


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise failure(f"{name} takes a whole number such as -3, not '{text[:40]}'.") from None


def parse_day(text: str, option: str) -> date:
    """A day that an option names. Fails in one line."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        shape = "2030-01" if option == "--month" else "2030-01-31"
        raise failure(
            f"{option} must look like {shape}, not {text.removesuffix('-01') if option == '--month' else text}."
        ) from None
