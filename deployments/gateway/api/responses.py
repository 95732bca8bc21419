"""OpenAI's responses: an answer as items, streamed or not. Nothing is stored: each request brings its conversation."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from starlette.responses import Response

from deployments.gateway.api.dependencies import KEY_REQUIRED, Context, Gateway, KeyedRoute
from deployments.gateway.api.generation import Generation, generate
from deployments.gateway.api.openai import named
from deployments.gateway.api.response_answers import ResponseObject
from deployments.gateway.api.response_schemas import LOGPROBS, ResponseByUrl, ResponseRequest
from deployments.gateway.api.response_shape import ResponseShape
from deployments.gateway.api.schemas import ERRORS
from deployments.gateway.api.tool_calls import CallReader
from deployments.gateway.api.tools import offered
from policies.errors import InvalidRequest, NotFound

router = APIRouter(tags=["text"], dependencies=KEY_REQUIRED, route_class=KeyedRoute, responses=ERRORS)


@router.post("/v1/responses", response_model=ResponseObject, summary="Response")
async def respond(body: ResponseRequest, gateway: Gateway, context: Context) -> Response:
    """OpenAI's responses, with `focus` and a lower `utility`. Nothing is stored, whatever `store` says."""
    return await _respond(gateway, context, named(gateway, context, body.model), body)


@router.post("/models/{model_id:path}/v1/responses", response_model=ResponseObject, summary="Response, by model URL")
async def respond_by_url(model_id: str, body: ResponseByUrl, gateway: Gateway, context: Context) -> Response:
    """The same where the URL names the model."""
    return await _respond(gateway, context, model_id, body)


@router.get("/v1/responses/{response_id}", summary="No response is stored")
@router.delete("/v1/responses/{response_id}", summary="No response is stored")
async def stored(response_id: str) -> Response:
    """404, always: nothing is stored."""
    raise NotFound(
        f"No response '{response_id[:80]}': nothing is stored here; keep what a request answers.",
        param="response_id",
        code="response_not_found",
    )


async def _respond(gateway: Gateway, context: Context, model_id: str, body: ResponseRequest) -> Response:
    offer, turns, grammar = body.offer(), body.turns, body.grammar()
    if not turns:
        raise InvalidRequest("input holds no message.", param="input", code="invalid_value")
    reader: Callable[[], CallReader] | None = None
    if offer.offered or any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
        info = gateway.entitle(context.caller, model_id)
        turns, grammar, reader = offered(offer, info, turns, grammar)
    asked = Generation(
        prompt=turns,
        field="input",
        max_tokens=body.max_output_tokens,
        logprobs=body.logprobs,
        shape=ResponseShape(model_id, body.told(), LOGPROBS in body.include, reader),
        grammar=grammar,
    )
    try:
        return await generate(gateway, context, model_id, body, asked)
    except InvalidRequest as error:
        if error.param == "messages":  # as a template refuses a conversation
            error.param = "input"
        raise
