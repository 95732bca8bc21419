"""A text request's way: checked, admitted, generated, and answered as a whole or as events."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.config import Task
from deployments.contracts.catalog import DEFAULT_MAX_TOKENS, ModelInfo, TextDelta
from deployments.contracts.grammar import Grammar
from deployments.contracts.text_rules import check_context, check_text_disclosure
from deployments.gateway.api.dependencies import Context, Gateway
from deployments.gateway.api.text_answers import ChatShape, CompletionShape, Tally
from deployments.gateway.api.text_schemas import GenerationRequest
from deployments.gateway.ticket import Cost, Ticket
from policies.errors import InvalidRequest
from policies.terms import round_level
from tenants.entitlements import Entitlements

MAX_CHARACTERS_PER_TOKEN = 64
_STREAM = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""No proxy on the way is to wait for more of a stream."""
_MESSAGE_TOKENS = 64
"""More than any chat template adds to a message, or to none."""


@dataclass(frozen=True)
class Generation:
    """What chat and completion differ in.

    Attributes:
        prompt: messages, or texts to continue (a string, or token ids).
        field: the request's field that it came in.
        max_tokens: most tokens of an answer; None: the default, as far as the context has room.
        logprobs: likeliest tokens to tell beside each; None: no log-probabilities.
        shape: how the answer looks.
        grammar: what it must be; None: anything.
    """

    prompt: list[dict[str, str]] | list[str | list[int]]
    field: str
    max_tokens: int | None
    logprobs: int | None
    shape: ChatShape | CompletionShape
    grammar: Grammar | None = None


async def generate(
    gateway: Gateway, context: Context, model_id: str, body: GenerationRequest, asked: Generation
) -> Response:
    """One way for chat and completion: check, admit, generate, and answer as a whole or as events."""
    info = gateway.entitle(context.caller, model_id)
    _check_terms(context.caller, info, body, asked)
    await _check_length(gateway, context, info, asked)
    cost = Cost(tokens=_most_prompt_tokens(asked.prompt) + _answers(body, asked) * (asked.max_tokens or _default(info)))
    tally = Tally()
    async with AsyncExitStack() as stack:
        ticket = await stack.enter_async_context(
            gateway.admit(context, model_id, cost, utility=body.utility, focus=body.focus)
        )
        params = body.params(asked.max_tokens, asked.logprobs, asked.grammar)
        deltas = await stack.enter_async_context(aclosing(_metered(ticket, asked, params, tally)))
        # Waiting for the first piece turns a refusal by the engine into a status instead of a broken stream.
        first = await anext(deltas)
        if body.stream:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            return _LeasedStream(asked.shape.events(first, deltas, tally, include_usage), stack.pop_all())
        pieces = [first] + [delta async for delta in deltas]
    return JSONResponse(asked.shape.whole(pieces, tally))


def _answers(body: GenerationRequest, asked: Generation) -> int:
    return body.n * (1 if asked.field == "messages" else len(asked.prompt))


def _default(info: ModelInfo) -> int:
    return min(DEFAULT_MAX_TOKENS, info.context or DEFAULT_MAX_TOKENS)


def _check_terms(entitlements: Entitlements, info: ModelInfo, body: GenerationRequest, asked: Generation) -> None:
    """Refuse another task's model, and what a tenant's level does not disclose."""
    if info.task is not Task.TEXT:
        raise InvalidRequest(
            f"'{info.id}' does {info.task}; send images to POST /models/{info.id}.", param="model", code="wrong_task"
        )
    own = entitlements.tier.level(info.id, info.floor)
    level = own if body.utility is None else min(own, round_level(body.utility))
    check_text_disclosure(
        entitlements.tier.disclosure(level),
        logprobs=asked.logprobs,
        biased=bool(body.logit_bias),
        grammar=asked.grammar and asked.grammar.param,
        count_param="top_logprobs" if asked.field == "messages" else "logprobs",
    )


async def _check_length(gateway: Gateway, context: Context, info: ModelInfo, asked: Generation) -> None:
    """Refuse what does not fit the context, before it costs the tenant anything.

    Most prompts are so short that their bytes say so; only where they do not is the model's replica asked.
    """
    if info.context is None:
        return
    if asked.max_tokens is not None and asked.max_tokens > info.context:
        raise InvalidRequest(
            f"max_tokens is {asked.max_tokens}, but the context of {info.id} is {info.context} tokens.",
            param="max_tokens",
            code="context_length_exceeded",
        )
    prompts = [asked.prompt] if asked.field == "messages" else [[text] for text in asked.prompt]
    for prompt in prompts:
        characters = sum(_size(part) for part in prompt)
        if characters > MAX_CHARACTERS_PER_TOKEN * info.context:
            raise InvalidRequest(
                f"The context of {info.id} is {info.context} tokens, but the prompt has {characters} characters.",
                param=asked.field,
                code="context_length_exceeded",
            )
    answer = asked.max_tokens or 1
    most = max(sum(_bytes(part) + _MESSAGE_TOKENS for part in prompt) + _MESSAGE_TOKENS for prompt in prompts)
    if most + answer > info.context:
        for tokens in await gateway.count_tokens(context, info.id, asked.prompt):
            check_context(info.id, info.context, tokens, answer, param=asked.field)


def _size(part: dict[str, str] | str | list[int]) -> int:
    """Characters of a part of a prompt, or its tokens where it is given as such."""
    return len(part["content"]) if isinstance(part, dict) else len(part)


def _bytes(part: dict[str, str] | str | list[int]) -> int:
    """More than the tokens of a part of a prompt: no token is less than a byte of it."""
    if isinstance(part, list):
        return len(part)
    # A lone surrogate, which JSON can carry, has no bytes; the tokenizer gives it a replacement's.
    return len((part["content"] if isinstance(part, dict) else part).encode("utf-8", "replace"))


def _most_prompt_tokens(prompt: list[dict[str, str]] | list[str | list[int]]) -> int:
    """About twice the tokens of a prompt, which the gateway does not count: a quarter of its bytes is usual."""
    sizes = [_bytes(part) * (1.0 if isinstance(part, list) else 0.5) for part in prompt]
    return math.ceil(sum(sizes)) + 16 * (len(sizes) + 1)


async def _metered(
    ticket: Ticket, asked: Generation, params: dict[str, Any], tally: Tally
) -> AsyncGenerator[TextDelta]:
    """The engine's deltas, booked on the lease as they come, so that a stream cut short is billed as far as it went.

    Those that tell of a prompt being read are booked and kept back: an answer begins with its first token.
    """
    async with aclosing(ticket.stream("generate", asked.prompt, params)) as deltas:
        async for delta in deltas:
            tally.add(delta)
            ticket.lease.settle(tokens_in=tally.prompt, tokens_out=tally.completion)
            if delta.tokens or delta.finish_reason:
                yield delta


class _LeasedStream(StreamingResponse):
    """Server-sent events that hold a request's lease, and release it even where the client leaves before the first."""

    def __init__(self, events: AsyncIterator[str], stack: AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_STREAM)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)
