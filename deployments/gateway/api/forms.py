"""Forms with files, read apart from the event loop: a file may be large."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header

from deployments.gateway.api.dependencies import said_kind
from policies.errors import InvalidRequest

MOST_FIELDS = 32
_PIECE = 2**20


@dataclass
class Form:
    """What a form holds, by name; `names` are the files' own."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


async def read_form(request: Request) -> Form:
    """A request's form. Raises InvalidRequest where it is none; the message says what it is."""
    header = request.headers.get("content-type", "")
    kind, options = parse_options_header(header)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        what = "a form without its boundary" if kind == b"multipart/form-data" else said_kind(header)
        raise InvalidRequest(
            f"The body's content type is {what}; send a form, multipart/form-data, with the fields 'file' and"
            " 'purpose'.",
            code="invalid_content_type",
        )
    body = await request.body()
    try:
        return await asyncio.to_thread(_parsed, body, options[b"boundary"])
    except FormParserError:
        raise InvalidRequest(
            "The body is not the form that its content type says; send multipart/form-data.", code="invalid_form"
        ) from None


def _parsed(body: bytes, boundary: bytes) -> Form:
    form = Form()

    def count(name: bytes | None) -> str:
        if len(form.fields) + len(form.files) >= MOST_FIELDS:
            raise FormParserError("too many fields")
        return (name or b"").decode("utf-8", "replace")

    def on_field(given: Any) -> None:
        form.fields[count(given.field_name)] = (given.value or b"").decode("utf-8", "replace")

    def on_file(given: Any) -> None:
        name = count(given.field_name)
        given.file_object.seek(0)
        form.files[name] = given.file_object.read()
        form.names[name] = (given.file_name or b"").decode("utf-8", "replace")
        given.close()

    config: Any = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
    parser = FormParser("multipart/form-data", on_field, on_file, boundary=boundary, config=config)
    for at in range(0, len(body), _PIECE):
        parser.write(body[at : at + _PIECE])
    parser.finalize()
    return form
