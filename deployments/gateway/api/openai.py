"""The OpenAI-compatible API: chat and text completions, streamed or not, and the list of models."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from starlette.responses import Response

from deployments.config import Task
from deployments.contracts.catalog import DEFAULT_COMPLETION_TOKENS, ModelInfo
from deployments.gateway.api.dependencies import KEY_REQUIRED, Context, Gateway, KeyedRoute
from deployments.gateway.api.generation import Generation, generate
from deployments.gateway.api.schemas import ERRORS, ModelCard, ModelList
from deployments.gateway.api.text_answers import ChatShape, CompletionShape
from deployments.gateway.api.text_responses import ChatCompletion, Completion
from deployments.gateway.api.text_schemas import ChatByUrl, ChatRequest, CompletionByUrl, CompletionRequest
from deployments.gateway.api.tool_calls import CallReader
from deployments.gateway.api.tools import offered
from policies.terms import Tier

router = APIRouter(tags=["text"], dependencies=KEY_REQUIRED, route_class=KeyedRoute, responses=ERRORS)


@router.post("/v1/chat/completions", response_model=ChatCompletion, summary="Chat")
async def chat(body: ChatRequest, gateway: Gateway, context: Context) -> Response:
    """OpenAI's chat completions, with `focus` (words and phrases to favour or avoid) and a lower `utility`."""
    return await _chat(gateway, context, named(gateway, context, body.model), body)


@router.post("/models/{model_id:path}/v1/chat/completions", response_model=ChatCompletion, summary="Chat, by model URL")
async def chat_by_url(model_id: str, body: ChatByUrl, gateway: Gateway, context: Context) -> Response:
    """The same where the URL names the model, as `huggingface_hub.InferenceClient` calls it."""
    return await _chat(gateway, context, model_id, body)


@router.post("/v1/completions", response_model=Completion, summary="Completion")
async def complete(body: CompletionRequest, gateway: Gateway, context: Context) -> Response:
    """OpenAI's text completions, with `focus` and a lower `utility`."""
    return await _complete(gateway, context, named(gateway, context, body.model), body)


@router.post("/models/{model_id:path}/v1/completions", response_model=Completion, summary="Completion, by model URL")
async def complete_by_url(model_id: str, body: CompletionByUrl, gateway: Gateway, context: Context) -> Response:
    """The same where the URL names the model."""
    return await _complete(gateway, context, model_id, body)


@router.get("/v1/models", response_model=ModelList, tags=["models"], summary="Models")
async def models(gateway: Gateway, context: Context) -> ModelList:
    """The models that this key may use, each with its task and the names that focus may use."""
    infos, tier = gateway.models_for(context.caller), context.caller.tier
    return ModelList(data=[_card(info, tier, name) for info in infos for name in (info.id, *info.aliases)])


@router.get("/models/{model_id:path}/v1/models", response_model=ModelList, tags=["models"], summary="The URL's model")
async def models_by_url(model_id: str, gateway: Gateway, context: Context) -> ModelList:
    """The model that the URL names, for clients that list the models of their base URL."""
    return ModelList(data=[await model(model_id, gateway, context)])


@router.get("/v1/models/{model_id:path}", response_model=ModelCard, tags=["models"], summary="One model")
async def model(model_id: str, gateway: Gateway, context: Context) -> ModelCard:
    """One model that this key may use."""
    return _card(gateway.entitle(context.caller, model_id), context.caller.tier, model_id)


def named(gateway: Gateway, context: Context, model_id: str) -> str:
    """`dummy`, as `huggingface_hub.InferenceClient` calls a model that nobody named, is the only text model."""
    if model_id != "dummy":
        return model_id
    texts = [m.id for m in gateway.models_for(context.caller) if m.task is Task.TEXT]
    return texts[0] if len(texts) == 1 else model_id


def _card(info: ModelInfo, tier: Tier, name: str) -> ModelCard:
    utility = tier.level(info.id, info.floor)
    return ModelCard(
        id=name,
        root=info.id,
        created=info.created,
        task=info.task,
        utility=utility,
        lowest_utility=info.floor if tier.may_lower(utility) else utility,
        focus_classes=None if info.classes is None else list(info.classes),
        context=info.context,
        max_model_len=info.context,
        pending=info.pending or None,
    )


async def _complete(gateway: Gateway, context: Context, model_id: str, body: CompletionRequest) -> Response:
    asked = Generation(
        prompt=body.prompts,
        field="prompt",
        max_tokens=DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens,
        logprobs=body.logprobs,
        shape=CompletionShape(model_id, body.logprobs is not None),
        grammar=body.grammar(),
    )
    return await generate(gateway, context, model_id, body, asked)


async def _chat(gateway: Gateway, context: Context, model_id: str, body: ChatRequest) -> Response:
    offer, turns, grammar = body.offer(), [message.turn() for message in body.messages], body.grammar()
    reader: Callable[[], CallReader] | None = None
    if offer.offered or any(message.of_tools for message in body.messages):
        info = gateway.entitle(context.caller, model_id)
        turns, grammar, reader = offered(offer, info, turns, grammar)
    asked = Generation(
        prompt=turns,
        field="messages",
        max_tokens=body.most_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        shape=ChatShape(model_id, body.logprobs, reader),
        grammar=grammar,
    )
    return await generate(gateway, context, model_id, body, asked)
