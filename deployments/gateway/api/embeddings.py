"""OpenAI's embeddings. A level of an embedding is not defined: a tenant below 1.0 gets none."""

from __future__ import annotations

import asyncio
import base64
from array import array
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, field_validator
from starlette.responses import Response

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo
from deployments.contracts.text_rules import beyond_context, check_context
from deployments.gateway.api import parameters
from deployments.gateway.api.dependencies import KEY_REQUIRED, Context, Gateway, KeyedRoute
from deployments.gateway.api.generation import MAX_CHARACTERS_PER_TOKEN
from deployments.gateway.api.messages import mended
from deployments.gateway.api.schemas import ERRORS, StrictModel
from deployments.gateway.api.tasks import check_task
from deployments.gateway.api.text_schemas import is_text
from deployments.gateway.api.tolerance import Unserved
from deployments.gateway.ticket import Cost
from deployments.prompts.encoder import characters_of
from policies.errors import InvalidRequest, NotEntitled
from tenants.live.entitlements import Entitlements
from tenants.metering.wanted import Tokens

MOST_INPUTS = 2048
"""Texts of one request: OpenAI's own limit."""

router = APIRouter(tags=["text"], dependencies=KEY_REQUIRED, route_class=KeyedRoute, responses=ERRORS)


class EmbeddingRequest(StrictModel):
    """POST /v1/embeddings."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.EMBEDDING

    model: str = Field(description="Model id, of a model whose task is feature-extraction.")
    input: str | list[int] | list[str | list[int]] = Field(
        description=f"The text, as a string or token ids; or a list of up to {MOST_INPUTS} such texts."
    )
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="Numbers, or base64 of their float32 bytes, little-endian."
    )
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="The model's own number of them; another is refused."
    )

    @field_validator("input", mode="before")
    @classmethod
    def _shape(cls, given: Any) -> Any:
        if is_text(given) or (isinstance(given, list) and 0 < len(given) <= MOST_INPUTS and all(map(is_text, given))):
            return given
        raise ValueError(f"send a text (a string, or a list of token ids) or a list of 1 to {MOST_INPUTS} of them")

    @property
    def texts(self) -> list[str | list[int]]:
        """Each text."""
        several = isinstance(self.input, list) and not isinstance(self.input[0], int)
        texts: Any = self.input if several else [self.input]
        return [mended(text) if isinstance(text, str) else text for text in texts]


class EmbeddingByUrl(EmbeddingRequest):
    """POST /models/{id}/v1/embeddings."""

    model: str | None = Field(default=None, description="The URL names it.")  # type: ignore[assignment]


class Embedding(BaseModel):
    """One text's."""

    object: Literal["embedding"] = Field(default="embedding", description="Kind of object.")
    index: int = Field(description="Which of the texts it is of.")
    embedding: list[float] | str = Field(description="Of unit length; in base64 where that was asked for.")


class EmbeddingUsage(BaseModel):
    """Tokens of one request."""

    prompt_tokens: int = Field(description="Tokens of the texts.")
    total_tokens: int = Field(description="The same.")
    cost: int | None = Field(default=None, description="In micro-units, where the tenant is shown its costs.")


class EmbeddingList(BaseModel):
    """Answer of POST /v1/embeddings."""

    object: Literal["list"] = Field(default="list", description="Kind of object.")
    data: list[Embedding] = Field(description="One for each text, in order.")
    model: str = Field(description="The model that made them.")
    usage: EmbeddingUsage = Field(description="Tokens of the request.")


@router.post("/v1/embeddings", response_model=EmbeddingList, summary="Embeddings")
async def embed(body: EmbeddingRequest, gateway: Gateway, context: Context) -> Response:
    """OpenAI's embeddings, for keys whose level of the model is 1.0."""
    return await _embed(gateway, context, body.model, body)


@router.post("/models/{model_id:path}/v1/embeddings", response_model=EmbeddingList, summary="Embeddings, by model URL")
async def embed_by_url(model_id: str, body: EmbeddingByUrl, gateway: Gateway, context: Context) -> Response:
    """The same where the URL names the model."""
    return await _embed(gateway, context, model_id, body)


async def _embed(gateway: Gateway, context: Context, model_id: str, body: EmbeddingRequest) -> Response:
    info = gateway.entitle(context.caller, model_id)
    check_task(info, Task.EMBEDDING)
    _check_level(context.caller, info)
    texts = body.texts
    _check(info, body, texts)
    try:
        prompts = await gateway.encode(context, info, texts)
    except InvalidRequest as error:
        if error.param == "prompt":
            error.param = "input"
        raise
    for ids in prompts:
        if info.context is not None:
            check_context(info.context, len(ids), 0, param="input")
    count = sum(map(len, prompts))
    async with gateway.admit(context, info.id, Cost(tokens=Tokens(count, count, count))) as ticket:
        made: list[bytes] = await ticket.call("embed", prompts, "input")
        ticket.lease.settle(tokens_in=count, tokens_out=0)
    usage = {"prompt_tokens": count, "total_tokens": count}
    if context.caller.show_cost:
        usage["cost"] = ticket.lease.cost
    return await asyncio.to_thread(_answer, made, model_id, usage, body.encoding_format)


def _check_level(own: Entitlements, info: ModelInfo) -> None:
    """Fail closed: no noise is defined for an embedding, and nobody gets more than was sold."""
    level = own.tier.level(info.id, info.floor)
    if level < 1.0:
        raise NotEntitled(
            f"An embedding has no level below 1.0, and this key's of '{info.id}' is {level:g}; its tier or tenant needs"
            f" 'utility:{info.id}' 1.0.",
            param="model",
            code="embedding_level",
        )
    if own.focus(info.id):
        raise NotEntitled(
            f"An embedding has no focus, and this tenant has a standing one on '{info.id}'; an admin can remove it.",
            param="model",
            code="embedding_level",
        )


def _check(info: ModelInfo, body: EmbeddingRequest, texts: Sequence[str | list[int]]) -> None:
    """Refuse what the model does not make, and a text that cannot fit the context whatever it says."""
    if body.dimensions not in (None, info.dimensions):
        raise InvalidRequest(
            f"{info.id} makes embeddings of {info.dimensions} dimensions; leave dimensions out.",
            param="dimensions",
            code="invalid_value",
        )
    longest = max(map(characters_of, texts))
    if info.context is not None and longest > (info.characters or MAX_CHARACTERS_PER_TOKEN) * info.context:
        raise beyond_context(info.context, f"your input holds a text of {longest} characters", param="input")


def _answer(made: Sequence[bytes], model: str, usage: Mapping[str, int], encoding: str) -> Response:
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, encoding)}
        for index, vector in enumerate(made)
    ]
    return JSONResponse({"object": "list", "data": data, "model": model, "usage": usage})


def _written(vector: bytes, encoding: str) -> str | list[float]:
    return base64.b64encode(vector).decode() if encoding == "base64" else array("f", vector).tolist()
