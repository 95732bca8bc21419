"""`tenants init`: the installation's secrets, once."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tenants import installation, show
from tenants.console import Json, Yes, run


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
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Create the secrets of noise and receipts in the store, unless they are there; neither is ever shown."""
    if new_secret and not yes:
        typer.confirm(f"Draw a new noise secret? {installation.NEW_SECRET}", abort=True, err=True)
    elsewhere = outside or bool(os.environ.get("AIM_NOISE_SECRET"))
    told = run(context, lambda _, store: installation.create_secrets(store, outside=elsewhere, new=new_secret))
    show.done(told, "\n".join(told), as_json)
