"""OpenAI's batches: many requests in one file, answered within a day while nobody else asks."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, field_validator
from starlette.routing import Match

from deployments.gateway.api.dependencies import KEY_REQUIRED, Context, Gateway, KeyedRoute, api_key
from deployments.gateway.api.files import LEAST_KEEP_S, MOST_KEEP_S, PURPOSE, Runner, entitled
from deployments.gateway.api.pages import After, Limit, page
from deployments.gateway.api.schemas import ERRORS, StrictModel, short
from deployments.gateway.batches.lines import WINDOW_S
from policies.errors import InvalidRequest, NotEntitled, Unavailable
from tenants.batches.batches import Asked, Batch
from tenants.records import keyspace

router = APIRouter(tags=["batches"], dependencies=KEY_REQUIRED, route_class=KeyedRoute, responses=ERRORS)

TEXT = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
"""What a batch may ask of text, as far as it is served here; of pictures, `/models/<id>`."""
_PICTURES = re.compile(r"/models/([^/]+(?:/[^/]+)?)")
_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class OutputExpires(StrictModel):
    """When a batch's output files go."""

    anchor: Literal["created_at"] = Field(description="From their making.")
    seconds: int = Field(ge=LEAST_KEEP_S, le=MOST_KEEP_S, description="So many seconds.")


class BatchRequest(StrictModel):
    """POST /v1/batches."""

    input_file_id: str = Field(description="A file of JSON lines: custom_id, method, url, body.")
    endpoint: str = Field(
        description="Where all its requests go: " + ", ".join(TEXT) + ", or /models/<id> for pictures in base64."
    )
    completion_window: Literal["24h"] = Field(description="What is not answered by then is not asked any more.")
    metadata: Annotated[dict[str, str], short(16)] | None = Field(default=None, description="Notes of the client's.")
    output_expires_after: OutputExpires | None = Field(default=None, description="When the output files go.")

    @field_validator("metadata")
    @classmethod
    def _short(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        for name, value in (metadata or {}).items():
            if len(name) > 64 or len(value) > 512:
                raise ValueError("a name has at most 64 characters, a value 512")
        return metadata


class BatchFault(BaseModel):
    """One fault of a batch."""

    code: str = Field(description="A stable code.")
    message: str = Field(description="What is wrong.")
    line: int | None = Field(default=None, description="In which line of the file.")
    param: str | None = Field(default=None, description="In which field of it.")


class BatchFaults(BaseModel):
    """Why a batch failed."""

    object: Literal["list"] = Field(default="list", description="Kind of object.")
    data: list[BatchFault] = Field(description="The first faults.")


class RequestCounts(BaseModel):
    """How far a batch is."""

    total: int = Field(description="Lines.")
    completed: int = Field(description="Answered.")
    failed: int = Field(description="Answered by an error, or never asked.")


class BatchObject(BaseModel):
    """A batch, as OpenAI's API says it; `*_at` are unix times."""

    id: str = Field(description="Its id.")
    object: Literal["batch"] = Field(default="batch", description="Kind of object.")
    endpoint: str = Field(description="Where its requests go.")
    errors: BatchFaults | None = Field(description="Why it failed, or ended early.")
    input_file_id: str = Field(description="Its file.")
    completion_window: str = Field(description="Always 24h.")
    status: str = Field(
        description="validating, in_progress, finalizing, completed, failed, expired, cancelling or cancelled."
    )
    output_file_id: str | None = Field(description="The answers.")
    error_file_id: str | None = Field(description="The errors.")
    created_at: int = Field(description="Made.")
    expires_at: int = Field(description="Asks nothing any more.")
    in_progress_at: int | None = Field(default=None, description="Began to ask.")
    finalizing_at: int | None = Field(default=None, description="Began to write its files.")
    completed_at: int | None = Field(default=None, description="Ended.")
    failed_at: int | None = Field(default=None, description="Failed.")
    expired_at: int | None = Field(default=None, description="Ran out of time.")
    cancelling_at: int | None = Field(default=None, description="Was told to end.")
    cancelled_at: int | None = Field(default=None, description="Ended before its end.")
    request_counts: RequestCounts = Field(description="How far it is.")
    metadata: dict[str, str] | None = Field(description="As it was given.")


class BatchPage(BaseModel):
    """Some of a tenant's batches."""

    object: Literal["list"] = Field(default="list", description="Kind of object.")
    data: list[BatchObject] = Field(description="The batches.")
    first_id: str | None = Field(description="Id of the first.")
    last_id: str | None = Field(description="Id of the last.")
    has_more: bool = Field(description="Whether there are more after them.")


@router.post("/v1/batches", response_model=BatchObject, summary="Make a batch")
async def create(
    request: Request, body: BatchRequest, gateway: Gateway, context: Context, runner: Runner
) -> BatchObject:
    """Begins by itself; its requests are made with this key, as it then is."""
    tenant, settings = entitled(context.caller), gateway.settings.now
    if not settings.batch_open:
        raise NotEntitled("This deployment makes no batches (batch_open is 0).", code="batches_off")
    _check_endpoint(gateway, context, body.endpoint, {path for path in TEXT if _serves(request, path)})
    file = await runner.files.get(tenant, body.input_file_id)
    if file.purpose != PURPOSE:
        raise InvalidRequest(
            f"The file's purpose is '{file.purpose}'; upload one of purpose '{PURPOSE}'.",
            param="input_file_id",
            code="invalid_value",
        )
    now, keep_s = int(time.time()), settings.batch_keep_s
    expires = body.output_expires_after
    asked = Asked(
        id=f"batch_{secrets.token_hex(12)}",
        tenant=tenant,
        digest=keyspace.key_digest(api_key(request)),
        endpoint=body.endpoint,
        input_file_id=file.id,
        completion_window=body.completion_window,
        created_at=now,
        expires_at=now + WINDOW_S,
        output_keep_s=keep_s if expires is None else min(keep_s, expires.seconds),
        metadata=body.metadata,
    )
    made = await runner.batches.create(asked, most_open=settings.batch_open, keep_s=keep_s + WINDOW_S)
    runner.look()
    return _shown(made)


@router.get("/v1/batches", response_model=BatchPage, summary="A tenant's batches")
async def batches(context: Context, runner: Runner, after: After = None, limit: Limit = 20) -> dict[str, Any]:
    """The batches of all keys of the tenant."""
    found = await runner.batches.all(entitled(context.caller))
    return page([_shown(batch) for batch in found], after, limit)


@router.get("/v1/batches/{batch_id}", response_model=BatchObject, summary="One batch")
async def batch(batch_id: str, context: Context, runner: Runner) -> BatchObject:
    """A batch as it stands."""
    return _shown(await runner.batches.get(entitled(context.caller), batch_id))


@router.post("/v1/batches/{batch_id}/cancel", response_model=BatchObject, summary="End a batch")
async def cancel(batch_id: str, context: Context, runner: Runner) -> BatchObject:
    """Begins no further line; what was answered is written to its files."""
    return _shown(await runner.batches.cancel(entitled(context.caller), batch_id))


def _check_endpoint(gateway: Gateway, context: Context, endpoint: str, text: Collection[str]) -> None:
    if (pictures := _PICTURES.fullmatch(endpoint)) is not None:
        with suppress(Unavailable):  # it will have started
            gateway.entitle(context.caller, pictures[1])
    elif endpoint not in text:
        served = ", ".join(sorted(text))
        raise InvalidRequest(
            f"Invalid 'endpoint': send one of {served}, or /models/<id> for pictures.",
            param="endpoint",
            code="invalid_value",
        )


def _serves(request: Request, path: str) -> bool:
    asked = {"type": "http", "method": "POST", "path": path, "root_path": "", "headers": []}
    return any(route.matches(asked)[0] is Match.FULL for route in request.app.router.routes)


def _shown(batch: Batch) -> BatchObject:
    asked = batch.asked
    return BatchObject(
        id=asked.id,
        endpoint=asked.endpoint,
        errors=BatchFaults(data=[BatchFault(**fault) for fault in batch.errors]) if batch.errors else None,
        input_file_id=asked.input_file_id,
        completion_window=asked.completion_window,
        status=batch.status,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=asked.created_at,
        expires_at=asked.expires_at,
        **{f"{name}_at": batch.times.get(name) for name in _TIMES},
        request_counts=RequestCounts(total=batch.total, completed=batch.completed, failed=batch.failed),
        metadata=None if asked.metadata is None else dict(asked.metadata),
    )
