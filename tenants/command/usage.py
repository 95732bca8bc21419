"""`tenants usage`: what was used, and every request of a time for whoever bills it."""

from __future__ import annotations

from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tenants.admin.admin import TenantAdmin
from tenants.changes.edits import AdminError
from tenants.command import usage_tables
from tenants.command.console import Json, TenantId, complete_tenant, failure, run
from tenants.metering.events import read_events
from tenants.metering.usage import days_between, last_days, read_spent, read_usage
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


class Format(StrEnum):
    """Of an export."""

    CSV = "csv"
    JSONL = "jsonl"


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
        periods = [_day(f"{month}-01", "--month").isoformat()[:7]]
    elif first:
        periods = days_between(_day(first, "--from"), _day(last, "--to") if last else None)
    else:
        periods = last_days(days, _day(last, "--to") if last else None)
    if not periods or len(periods) > 4000:
        raise failure("--from must not be after --to, nor more than ten years before it.")

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


@app.command("export")
def export_events(
    context: typer.Context,
    first: Annotated[str, typer.Option("--from", metavar="DATE", help="First UTC day, 2030-01-31.")],
    tenants: Annotated[
        list[str] | None,
        typer.Argument(metavar="TENANT...", help="Of these; none: of all.", autocompletion=complete_tenant),
    ] = None,
    last: Annotated[str, typer.Option("--to", metavar="DATE", help="Last UTC day; default: today.")] = "",
    form: Annotated[Format, typer.Option("--format", help="csv has a header; jsonl is an object a line.")] = Format.CSV,
) -> None:
    """Print every settled request of a time, each once; its id never changes, so that a second import can tell.

    A tenant's last 100,000 requests or so are kept, for 35 days.
    """
    begin, end = _day(first, "--from"), _day(last, "--to") if last else datetime.now(UTC).date()
    if begin > end:
        raise failure("--from must not be after --to.")

    async def write(_: TenantAdmin, store: TenantStore) -> None:
        with usage_tables.exported(form is Format.CSV) as put:
            async for event in read_events(store, begin, end, tenants or ()):
                put(event)

    run(context, write)


def _day(text: str, option: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        shape = "2030-01" if option == "--month" else "2030-01-31"
        raise failure(
            f"{option} must look like {shape}, not {text.removesuffix('-01') if option == '--month' else text}."
        ) from None
