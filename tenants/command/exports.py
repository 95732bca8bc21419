"""`tenants usage export` and `send`: every request of a time, or since the last time, for whoever bills it."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tenants.admin.admin import TenantAdmin
from tenants.changes.edits import AdminError
from tenants.command.console import complete_tenant, failure, run
from tenants.command.usage import parse_day
from tenants.metering import delivery, exporting
from tenants.metering.events import Event, read_events, read_new
from tenants.metering.exporting import CloudEvents, Placed, Places, Stripe
from tenants.metering.formats import cloud_event
from tenants.records.settings import checked_url
from tenants.store.store import TenantStore

TOKEN = "USAGE_EXPORT_TOKEN"
"""The variable that holds the receiver's secret: a command line is anybody's to read."""
Source = Annotated[str, typer.Option(help="cloudevents: a URI that names this installation.")]
Whose = Annotated[
    list[str] | None,
    typer.Argument(metavar="TENANT...", help="Of these; none: of all.", autocompletion=complete_tenant),
]
From = Annotated[str, typer.Option("--from", metavar="DATE", help="First UTC day, 2030-01-31.")]
To = Annotated[str, typer.Option("--to", metavar="DATE", help="Last UTC day; default: today.")]
State = Annotated[
    Path | None,
    typer.Option("--state", metavar="FILE", help="In place of --from: all that came since FILE was written."),
]


class Format(StrEnum):
    """Of what is printed."""

    CSV = "csv"
    JSONL = "jsonl"
    CLOUDEVENTS = "cloudevents"


class Receiver(StrEnum):
    """Whose form is sent."""

    CLOUDEVENTS = "cloudevents"
    STRIPE = "stripe"


def export(
    context: typer.Context,
    tenants: Whose = None,
    first: From = "",
    last: To = "",
    state: State = None,
    form: Annotated[
        Format, typer.Option("--format", help="csv has a header; the others are an object a line.")
    ] = Format.CSV,
    source: Source = "aim-serve",
) -> None:
    """Print every settled request of a time, and every correction, each once; an id never changes.

    A tenant's last 100,000 requests or so are kept, for as long as `tenants settings` says.
    """
    places, events = _asked(tenants or (), first, last, state)

    async def write(_: TenantAdmin, store: TenantStore) -> None:
        taken: dict[str, Placed] = {}
        with _printed(form, source) as put:
            async for placed in events(store):
                put(placed[1])
                taken[placed[1].tenant] = placed
            sys.stdout.flush()
        places.take([*taken.values()])

    run(context, write)


def send(
    context: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="https://openmeter.example/api/v1/events, and the like.")],
    tenants: Whose = None,
    form: Annotated[Receiver, typer.Option("--format", help="Whose form.")] = Receiver.CLOUDEVENTS,
    first: From = "",
    last: To = "",
    state: State = None,
    source: Source = "aim-serve",
    customers: Annotated[
        Path | None, typer.Option(metavar="FILE", help='stripe: JSON, {"acme": "cus_..."}: customers by tenant.')
    ] = None,
    prefix: Annotated[str, typer.Option(help="stripe: of the meters' names, PREFIX_tokens_in and so on.")] = "aim",
) -> None:
    """Send every settled request to a billing system, and again until it takes it; an id never changes.

    The receiver's secret is read from the environment, USAGE_EXPORT_TOKEN, and sent as a bearer token.
    """
    places, events = _asked(tenants or (), first, last, state)
    try:
        checked_url(url)
    except ValueError as error:
        raise failure(f"URL: {error}.") from None
    token = os.environ.get(TOKEN, "")
    known = _customers(customers) if form is Receiver.STRIPE else {}

    async def work(_: TenantAdmin, store: TenantStore) -> int:
        async with delivery.client() as http:
            target = (
                Stripe(http, url, token, known, prefix)
                if form is Receiver.STRIPE
                else CloudEvents(http, url, token, source)
            )
            try:
                return await exporting.send(events(store), target, places)
            except (delivery.Refused, delivery.Undelivered) as error:
                raise AdminError(f"{error}. What was taken before stays; run this again for the rest.") from None

    typer.echo(f"Sent {run(context, work)} events.")


def _asked(
    tenants: Sequence[str], first: str, last: str, state: Path | None
) -> tuple[Places, Callable[[TenantStore], AsyncIterator[Placed]]]:
    """What to remember, and what to read."""
    if bool(first) == (state is not None):
        raise failure("give --from, or --state for all that came since the last time: one of them.")
    try:
        places = Places(state)
    except (ValueError, OSError) as error:
        raise failure(str(error)) from None
    if state is not None:
        if last:
            raise failure("--to goes with --from.")
        return places, lambda store: read_new(store, places.seen, tenants)
    begin, end = parse_day(first, "--from"), parse_day(last, "--to") if last else datetime.now(UTC).date()
    if begin > end:
        raise failure("--from must not be after --to.")

    async def of_days(store: TenantStore) -> AsyncIterator[Placed]:
        async for event in read_events(store, begin, end, tenants):
            yield "", event

    return places, of_days


def _customers(file: Path | None) -> dict[str, str]:
    if file is None:
        raise failure("stripe needs --customers FILE.")
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise failure(f"--customers: {file} cannot be read as JSON ({type(error).__name__}).") from None
    if not isinstance(found, dict) or not all(isinstance(value, str) and value for value in found.values()):
        raise failure(f'--customers: {file} must hold an object such as {{"acme": "cus_..."}}.')
    return found


@contextmanager
def _printed(form: Format, source: str) -> Iterator[Callable[[Event], None]]:
    """Print events as they come: CSV with a header, or a JSON object a line."""
    if form is Format.CSV:
        writer = csv.DictWriter(sys.stdout, [field.name for field in fields(Event)], lineterminator="\n")
        writer.writeheader()
        yield lambda event: writer.writerow(asdict(event))
    elif form is Format.CLOUDEVENTS:
        yield lambda event: print(json.dumps(cloud_event(event, source), ensure_ascii=False))
    else:
        yield lambda event: print(json.dumps(asdict(event), ensure_ascii=False))
