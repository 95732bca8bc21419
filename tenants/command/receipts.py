"""`tenants verify`: whether receipts are this installation's, and what they say."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from tenants.admin import installation
from tenants.command import show
from tenants.command.console import Json, failure, run
from tenants.records.receipts import HEADER, ReceiptError, Said, Signer, find

MOST_BYTES = 2**28


def verify(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Receipts, one a line, or saved responses (curl -i); -: stdin.")
    ],
    secret_file: Annotated[
        Path | None,
        typer.Option(help="The secret, in a file; default: AIM_RECEIPT_SECRET, else the store's secret:receipts."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that receipts (the header x-receipt) are this installation's, and say what they say; status 1 if not."""
    receipts = find(_text(file))
    if not receipts:
        raise failure(f"{file} holds no receipt: neither a line of one nor a header {HEADER}.")
    signer = _signer(context, secret_file)
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    for number, receipt in receipts:
        try:
            said = signer.verify(receipt)
        except ReceiptError as error:
            rows.append({"line": number, "genuine": False, "problem": str(error)})
            lines.append(f"NOT genuine, line {number}: {error}")
            continue
        rows.append({"line": number, "genuine": True, **asdict(said)})
        lines.append(f"genuine, line {number}: {_sentence(said)}")
    show.done(rows, "\n".join(lines), as_json)
    if not all(row["genuine"] for row in rows):
        raise typer.Exit(1)


def _text(file: str) -> str:
    try:
        data = sys.stdin.buffer.read(MOST_BYTES) if file == "-" else Path(file).read_bytes()[:MOST_BYTES]
    except OSError as error:
        raise failure(f"{file} cannot be read: {error.strerror}") from None
    return data.decode("utf-8", "replace")


def _signer(context: typer.Context, secret_file: Path | None) -> Signer:
    try:
        if secret_file is not None:
            return Signer(secret_file.expanduser().read_bytes().strip())
        if given := os.environ.get("AIM_RECEIPT_SECRET"):
            return Signer(given.encode())
    except OSError as error:
        raise failure(f"{secret_file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise failure(str(error)) from None
    return Signer(run(context, lambda _, store: installation.receipt_secret(store)).encode())


def _sentence(said: Said) -> str:
    focus = ", ".join(f"{_printable(term)}={strength:g}" for term, strength in said.focus.items()) or "none"
    return (
        f"request {said.request} of {said.tenant} at {said.time}: {said.model} at level {said.level:g},"
        f" focus {focus}, policy {said.policy}"
    )


def _printable(term: str) -> str:
    """A term of a client's, of which a terminal must obey nothing."""
    return term if term.isprintable() else quote(term)
