"""`tenants init`: the installation's secrets, once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tenants.admin import installation
from tenants.command import show
from tenants.command.console import Json, Yes, failure, run
from tenants.store.embedded import EmbeddedError, EmbeddedValkey


def init(
    context: typer.Context,
    new_secret: Annotated[
        bool,
        typer.Option(
            "--new-secret",
            help="Draw another noise secret in the place of one that is lost or known: every level is calibrated anew,"
            " and who kept old answers can average the old noise with the new.",
        ),
    ] = False,
    outside: Annotated[
        bool,
        typer.Option(
            "--noise-secret-outside", help="Replicas have it from a file; so taken where AIM_NOISE_SECRET is set."
        ),
    ] = False,
    embedded: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The data folder of an embedded store that does not run, such as .data."),
    ] = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Create the secrets of noise and receipts in the store, unless they are there; neither is ever shown."""
    if new_secret and not yes:
        typer.confirm(f"Draw a new noise secret? {installation.NEW_SECRET}", abort=True, err=True)
    elsewhere = outside or bool(os.environ.get("AIM_NOISE_SECRET"))
    with _running(context, embedded):
        told = run(context, lambda _, store: installation.create_secrets(store, outside=elsewhere, new=new_secret))
    show.done(told, "\n".join(told), as_json)


@contextmanager
def _running(context: typer.Context, embedded: Path | None) -> Iterator[None]:
    """An embedded store, where it is one, runs for the command and is what it works on."""
    if embedded is None:
        yield
        return
    if not (embedded / "store.json").exists():
        raise failure(f"{embedded} is not the data folder of an embedded store.")
    try:
        with EmbeddedValkey(embedded) as server:
            context.obj.url = server.url
            yield
    except EmbeddedError as error:
        raise failure(str(error)) from None
