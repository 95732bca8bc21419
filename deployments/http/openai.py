"""The OpenAI-compatible API: chat and text completions, streamed or not, and the list of models."""

from __future__ import annotations

import json
import logging
import math
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.catalog import DEFAULT_MAX_TOKENS, ModelInfo, TextDelta
from deployments.config import Task
from deployments.http.context import KEY_REQUIRED, Gateway, KeyedRoute
from deployments.http.errors import error_object
from deployments.http.schemas import (
    ERRORS,
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    GenerationRequest,
    ModelCard,
    ModelList,
)
from deployments.ticket import Cost, Ticket
from policies.errors import InvalidRequest, ServiceError

logger = logging.getLogger("deployments.http")

MAX_CHARACTERS_PER_TOKEN = 64

_ROLES = {"developer": "system"}
"""OpenAI's newer name of a role, which chat templates do not know."""

router = APIRouter(tags=["text"], dependencies=KEY_REQUIRED, route_class=KeyedRoute, responses=ERRORS)


@router.post("/v1/chat/completions", response_model=ChatCompletion, summary="Chat")
async def chat(request: Request, body: ChatRequest, gateway: Gateway) -> Response:
    """OpenAI's chat completions, with `focus` (words to favour or avoid) and a lower `utility`."""
    return await _chat(request, gateway, await _named(request, gateway, body.model), body)


@router.post("/models/{model_id}/v1/chat/completions", response_model=ChatCompletion, summary="Chat, by model URL")
async def chat_by_url(request: Request, model_id: str, body: ChatRequest, gateway: Gateway) -> Response:
    """The same where the URL names the model, as `huggingface_hub.InferenceClient` calls it."""
    return await _chat(request, gateway, model_id, body)


@router.post("/v1/completions", response_model=Completion, summary="Completion")
async def complete(request: Request, body: CompletionRequest, gateway: Gateway) -> Response:
    """OpenAI's text completions, with `focus` and a lower `utility`."""
    model_id = await _named(request, gateway, body.model)
    return await _answer(request, gateway, model_id, body, body.prompt, body.max_tokens, _CompletionShape(model_id))


@router.get("/v1/models", response_model=ModelList, tags=["models"], summary="Models")
async def models(request: Request, gateway: Gateway) -> ModelList:
    """The models that this key may use, each with its task and the names that focus may use."""
    entitlements = await gateway.authenticate(request)
    return ModelList(
        data=[_card(info, entitlements.tier.level(info.id, info.floor)) for info in gateway.models_for(entitlements)]
    )


@router.get("/v1/models/{model_id}", response_model=ModelCard, tags=["models"], summary="One model")
async def model(request: Request, model_id: str, gateway: Gateway) -> ModelCard:
    """One model that this key may use."""
    entitlements = await gateway.authenticate(request)
    info = gateway.entitle(entitlements, model_id)
    return _card(info, entitlements.tier.level(info.id, info.floor))


async def _named(request: Request, gateway: Gateway, model_id: str) -> str:
    """`dummy`, as `huggingface_hub.InferenceClient` calls a model that nobody named, is the only text model."""
    if model_id != "dummy":
        return model_id
    texts = [m.id for m in gateway.models_for(await gateway.authenticate(request)) if m.task is Task.TEXT]
    return texts[0] if len(texts) == 1 else model_id


def _card(info: ModelInfo, utility: float) -> ModelCard:
    return ModelCard(
        id=info.id,
        created=info.created,
        task=info.task,
        utility=utility,
        lowest_utility=info.floor,
        focus_classes=None if info.classes is None else list(info.classes),
        context=info.context,
    )


async def _chat(request: Request, gateway: Gateway, model_id: str, body: ChatRequest) -> Response:
    messages = [{"role": _ROLES.get(m.role, m.role), "content": m.text} for m in body.messages]
    max_tokens = body.max_completion_tokens or body.max_tokens
    return await _answer(request, gateway, model_id, body, messages, max_tokens, _ChatShape(model_id))


async def _answer(
    request: Request,
    gateway: Gateway,
    model_id: str,
    body: GenerationRequest,
    prompt: str | list[dict[str, str]],
    max_tokens: int | None,
    shape: _ChatShape | _CompletionShape,
) -> Response:
    """One way for chat and completion: admit, generate, and answer as a whole or as events."""
    entitlements = await gateway.authenticate(request)
    info = gateway.entitle(entitlements, model_id)
    _check_text(info, max_tokens, body)
    _check_size(info, prompt)
    params = {
        "max_tokens": max_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "seed": body.seed,
        "stop": body.stops,
    }
    cost = Cost(tokens=_most_prompt_tokens(prompt) + (max_tokens or DEFAULT_MAX_TOKENS))
    async with AsyncExitStack() as stack:
        ticket = await stack.enter_async_context(
            gateway.admit(request, model_id, cost, utility=body.utility, focus=body.focus, entitlements=entitlements)
        )
        deltas = await stack.enter_async_context(aclosing(_metered(ticket, prompt, params)))
        # Waiting for the first piece turns a refusal by the engine into a status instead of a broken stream.
        first = await anext(deltas)
        if body.stream:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            return _LeasedStream(shape.events(first, deltas, include_usage), stack.pop_all())
        pieces = [first] + [delta async for delta in deltas]
    return JSONResponse(shape.whole("".join(p.text for p in pieces), pieces[-1]))


def _check_text(info: ModelInfo, max_tokens: int | None, body: GenerationRequest) -> None:
    if info.task is not Task.TEXT:
        raise InvalidRequest(
            f"'{info.id}' does {info.task}; send images to POST /models/{info.id}.", param="model", code="wrong_task"
        )
    if max_tokens is not None and info.context is not None and max_tokens > info.context:
        raise InvalidRequest(
            f"max_tokens is {max_tokens}, but the context of {info.id} is {info.context} tokens.",
            param="max_tokens",
            code="context_length_exceeded",
        )
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream to be true.", param="stream_options", code="invalid_value")


def _check_size(info: ModelInfo, prompt: str | list[dict[str, str]]) -> None:
    """Refuse what no tokenizer could fit into the context, before one spends seconds on it."""
    chat = not isinstance(prompt, str)
    size = sum(len(message["content"]) for message in prompt) if chat else len(prompt)
    if info.context is not None and size > MAX_CHARACTERS_PER_TOKEN * info.context:
        raise InvalidRequest(
            f"The context of {info.id} is {info.context} tokens, but the prompt has {size} characters.",
            param="messages" if chat else "prompt",
            code="context_length_exceeded",
        )


def _most_prompt_tokens(prompt: str | list[dict[str, str]]) -> int:
    """About twice the tokens of a prompt, which the gateway cannot count: a quarter of its bytes is usual."""
    texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    return math.ceil(sum(len(text.encode()) for text in texts) / 2) + 16 * (len(texts) + 1)


async def _metered(
    ticket: Ticket, prompt: str | list[dict[str, str]], params: dict[str, Any]
) -> AsyncGenerator[TextDelta]:
    """The engine's deltas, booked on the lease as they come, so that a stream cut short is billed as far as it went."""
    completion = 0
    async with aclosing(ticket.stream("generate", prompt, params)) as deltas:
        async for delta in deltas:
            completion += delta.tokens
            ticket.lease.settle(tokens_in=delta.prompt_tokens, tokens_out=completion)
            yield delta


class _LeasedStream(StreamingResponse):
    """Server-sent events that hold a request's lease, and release it even where the client leaves before the first."""

    def __init__(self, events: AsyncIterator[str], stack: AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)


class _Shape(ABC):
    """How an answer looks on the wire: the parts that chat and completion share."""

    prefix: str
    object: str
    chunk_object: str

    def __init__(self, model: str) -> None:
        self.base = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, last: TextDelta) -> dict[str, Any]:
        """The whole answer."""
        choice = {"index": 0, **self.content(text), "finish_reason": last.finish_reason, "logprobs": None}
        return {**self.base, "object": self.object, "choices": [choice], "usage": _usage(last)}

    async def events(
        self, first: TextDelta, deltas: AsyncIterator[TextDelta], include_usage: bool
    ) -> AsyncIterator[str]:
        """The answer as server-sent events, ending with [DONE]; an error becomes the last event before it."""
        if opening := self.opening():
            yield self._event(opening, None)
        last = first
        try:
            yield self._event(self.piece(first.text), first.finish_reason)
            async for last in deltas:
                if last.text or last.finish_reason:
                    yield self._event(self.piece(last.text), last.finish_reason)
            if include_usage:
                yield _sse({**self.base, "object": self.chunk_object, "choices": [], "usage": _usage(last)})
        except ServiceError as error:
            yield _sse(error_object(error))
        except Exception:
            logger.exception("a stream failed")
            yield _sse(error_object(ServiceError("The server failed on this request.")))
        yield "data: [DONE]\n\n"

    def _event(self, content: dict[str, Any], finish_reason: str | None) -> str:
        choice = {"index": 0, **content, "finish_reason": finish_reason, "logprobs": None}
        return _sse({**self.base, "object": self.chunk_object, "choices": [choice]})

    def opening(self) -> dict[str, Any] | None:
        """What is sent before the first piece."""
        return None

    @abstractmethod
    def content(self, text: str) -> dict[str, Any]:
        """A whole answer's text."""

    @abstractmethod
    def piece(self, text: str) -> dict[str, Any]:
        """One event's text."""


class _ChatShape(_Shape):
    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": ""}}

    def content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def piece(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}


class _CompletionShape(_Shape):
    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    piece = content


def _usage(last: TextDelta) -> dict[str, int]:
    total = last.prompt_tokens + last.completion_tokens
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "total_tokens": total,
    }


def _sse(payload: dict[str, Any]) -> str:
    return f"data: {json.dumps(payload, ensure_ascii=False)}\n\n"
