"""OpenAI's files: what batches are read from, and what they write."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from deployments.gateway.api.dependencies import KEY_REQUIRED, Context, Gateway, KeyedRoute
from deployments.gateway.api.forms import Form, read_form
from deployments.gateway.api.pages import After, Limit, page
from deployments.gateway.api.schemas import ERRORS
from policies.errors import InvalidRequest, NotEntitled, PayloadTooLarge
from tenants.batches.files import Space, StoredFile
from tenants.live.entitlements import Entitlements

router = APIRouter(tags=["batches"], dependencies=KEY_REQUIRED, route_class=KeyedRoute, responses=ERRORS)

PURPOSE = "batch"
LEAST_KEEP_S, MOST_KEEP_S = 3600, 2_592_000
_FIELDS = ("purpose", "file", "expires_after[anchor]", "expires_after[seconds]")
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "JSON lines."},
                        "purpose": {"type": "string", "enum": [PURPOSE]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer"},
                    },
                }
            }
        },
    }
}


class FileObject(BaseModel):
    """A file, as OpenAI's API says it."""

    id: str = Field(description="Its id.")
    object: Literal["file"] = Field(default="file", description="Kind of object.")
    bytes: int = Field(description="Its size.")
    created_at: int = Field(description="Unix time.")
    expires_at: int = Field(description="Unix time at which it is gone.")
    filename: str = Field(description="Its name.")
    purpose: str = Field(description="`batch`, or `batch_output` of what a batch wrote.")
    status: Literal["processed"] = Field(default="processed", description="Always processed.")


class FilePage(BaseModel):
    """Some of a tenant's files."""

    object: Literal["list"] = Field(default="list", description="Kind of object.")
    data: list[FileObject] = Field(description="The files.")
    first_id: str | None = Field(description="Id of the first.")
    last_id: str | None = Field(description="Id of the last.")
    has_more: bool = Field(description="Whether there are more after them.")


class DeletedFile(BaseModel):
    """Answer of DELETE /v1/files/{id}."""

    id: str = Field(description="Its id.")
    object: Literal["file"] = Field(default="file", description="Kind of object.")
    deleted: Literal[True] = Field(default=True, description="Always true.")


async def _runner(request: Request) -> Any:
    return request.app.state.batches


Runner = Annotated[Any, Depends(_runner)]


def entitled(own: Entitlements) -> str:
    """The tenant of a key that may use files and batches. Raises NotEntitled: what they hold are its answers."""
    if not own.may_infer():
        raise NotEntitled("This key's scopes do not include inference.", code="scope_not_entitled")
    return own.tenant


@router.post("/v1/files", response_model=FileObject, openapi_extra=_BODY, summary="Upload a batch's file")
async def upload(request: Request, gateway: Gateway, context: Context, runner: Runner) -> FileObject:
    """A form with `file` (JSON lines) and `purpose` (batch)."""
    tenant, settings = entitled(context.caller), gateway.settings.now
    form = await read_form(request)
    keep_s = min(_checked(form), settings.batch_keep_s)
    data = form.files["file"]
    if len(data) > settings.batch_file_bytes:
        most = settings.batch_file_bytes
        raise PayloadTooLarge(f"The file is larger than {most:,} bytes.", param="file", code="file_too_large")
    space = Space(settings.batch_files, settings.batch_tenant_bytes, settings.batch_total_bytes)
    async with runner.uploading(tenant):
        await runner.files.check(tenant, len(data), space)
        name = form.names.get("file") or "file.jsonl"
        return _shown(await runner.files.put(tenant, name[:255], PURPOSE, _once(data), keep_s=keep_s))


@router.get("/v1/files", response_model=FilePage, summary="A tenant's files")
async def files(
    context: Context,
    runner: Runner,
    after: After = None,
    limit: Limit = 10_000,
    purpose: Annotated[str | None, Query(description="Only those of it.")] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="By the time of their making.")] = "desc",
) -> dict[str, Any]:
    """The files of all keys of the tenant."""
    found = await runner.files.all(entitled(context.caller))
    shown = [_shown(file) for file in found if purpose in (None, file.purpose)]
    return page(shown if order == "desc" else shown[::-1], after, limit)


@router.get("/v1/files/{file_id}", response_model=FileObject, summary="One file")
async def file(file_id: str, context: Context, runner: Runner) -> FileObject:
    """What a file is."""
    return _shown(await runner.files.get(entitled(context.caller), file_id))


@router.get("/v1/files/{file_id}/content", response_class=StreamingResponse, summary="A file's bytes")
async def content(file_id: str, context: Context, runner: Runner) -> StreamingResponse:
    """The file itself."""
    tenant = entitled(context.caller)
    found = await runner.files.get(tenant, file_id)
    headers = {"content-length": str(found.bytes), "content-disposition": f'attachment; filename="{found.id}.jsonl"'}
    return StreamingResponse(runner.files.read(tenant, found), headers=headers, media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}", response_model=DeletedFile, summary="Delete a file")
async def delete(file_id: str, context: Context, runner: Runner) -> DeletedFile:
    """Gone at once; one that a batch is being made of is not deleted."""
    tenant = entitled(context.caller)
    await runner.files.get(tenant, file_id)
    for batch in await runner.batches.open_of(tenant):
        if batch.asked.input_file_id == file_id:
            raise InvalidRequest(
                f"The batch '{batch.asked.id}' reads this file; cancel it first, or wait for its end.",
                code="file_in_use",
            )
    await runner.files.delete(tenant, file_id)
    return DeletedFile(id=file_id)


def _checked(form: Form) -> int:
    """Seconds that a form's file is to be kept. Raises InvalidRequest where the form is no upload of a batch's file."""
    for name in (*form.files, *form.fields):
        if name not in _FIELDS:
            raise InvalidRequest(
                f"Unsupported parameter: '{name[:80]}'. Leave it out.", param=name[:80], code="unsupported_parameter"
            )
    if "file" not in form.files:
        raise InvalidRequest("Missing required parameter: 'file', as a file of the form.", param="file", code="missing")
    if "purpose" not in form.fields:
        raise InvalidRequest("Missing required parameter: 'purpose'; send 'batch'.", param="purpose", code="missing")
    if form.fields["purpose"] != PURPOSE:
        raise _invalid("purpose", f"files are for batches; send '{PURPOSE}', not '{form.fields['purpose'][:40]}'")
    if form.fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise _invalid("expires_after[anchor]", "send 'created_at'")
    given = form.fields.get("expires_after[seconds]", str(MOST_KEEP_S))
    if not given.isdecimal() or not LEAST_KEEP_S <= int(given[:9]) <= MOST_KEEP_S:
        raise _invalid("expires_after[seconds]", f"send a number from {LEAST_KEEP_S} to {MOST_KEEP_S}")
    return int(given)


def _invalid(param: str, said: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': {said}.", param=param, code="invalid_value")


def _shown(file: StoredFile) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_at,
        expires_at=file.expires_at,
        filename=file.filename,
        purpose=file.purpose,
    )


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
