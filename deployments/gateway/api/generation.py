"""A text request's way: checked, admitted, generated, and answered as a whole or as events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from fastapi.responses import JSONResponse
from starlette.responses import Response

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo, TextDelta
from deployments.contracts.grammar import Grammar
from deployments.contracts.text_rules import beyond_context, check_context, check_text_disclosure, probes_of
from deployments.gateway.api.dependencies import Context, Gateway
from deployments.gateway.api.sampled import Sampled
from deployments.gateway.api.streams import COMMENT_EVERY_S, LeasedStream, Waited
from deployments.gateway.api.tasks import check_task
from deployments.gateway.api.text_answers import Tally
from deployments.gateway.ticket import Cost, Ticket
from deployments.gateway_settings import GatewaySettings
from deployments.prompts.encoder import characters_of
from policies.errors import InvalidRequest
from policies.terms import Disclosure, round_level
from tenants.live.entitlements import Entitlements
from tenants.metering.wanted import Tokens

MAX_CHARACTERS_PER_TOKEN = 64
"""Of a model whose tokenizer may leave out parts of a text, so that no length is too long for it."""
_LEAST_ANSWER = 16
"""Tokens that an answer of the default length may be cut to, where a limit leaves no more."""


class Form(Protocol):
    """How answers look."""

    def whole(self, deltas: Sequence[TextDelta], tally: Tally) -> dict[str, Any]:
        """All answers of a request, from all their pieces."""

    def events(
        self, deltas: AsyncIterator[TextDelta | None], tally: Tally, usage: Literal["none", "last", "each"], /
    ) -> AsyncIterator[str]:
        """The answers as server-sent events, an error inside them; where None comes, a comment."""


@dataclass(frozen=True)
class Generation:
    """What chats, completions and responses differ in.

    Attributes:
        prompt: messages, or texts to continue (a string, or token ids).
        field: the request's field that it came in.
        max_tokens: most tokens of an answer; None: the default, as far as the context has room.
        logprobs: likeliest tokens to tell beside each; None: no log-probabilities.
        shape: how the answer looks.
        grammar: what it must be; None: anything.
    """

    prompt: list[dict[str, Any]] | list[str | list[int]]
    field: str
    max_tokens: int | None
    logprobs: int | None
    shape: Form
    grammar: Grammar | None = None

    @property
    def chats(self) -> bool:
        """Whether the prompt is a conversation, not texts."""
        return isinstance(self.prompt[0], dict)

    def most(self, default: int) -> int:
        """Most tokens of an answer, whatever room there is for it."""
        return default if self.max_tokens is None else self.max_tokens


async def generate(gateway: Gateway, context: Context, model_id: str, body: Sampled, asked: Generation) -> Response:
    """One way for chats, completions and responses: check, admit, generate, and answer as a whole or as events."""
    info = gateway.entitle(context.caller, model_id)
    _check_terms(context.caller, info, body, asked)
    needs = partial(_check_disclosure, body, asked)
    settings = gateway.settings.now
    _check_length(info, asked, settings)
    prompts = await gateway.encode(context, info, asked.prompt)
    longest = [_most(info, asked, len(ids), settings) for ids in prompts]
    least = [min(most, _LEAST_ANSWER) if asked.max_tokens is None else most for most in longest]
    read = sum(map(len, prompts))
    # Never less than what is used, so that no limit is exceeded.
    cost = Cost(tokens=Tokens(read + body.answers * sum(longest), read + body.answers * sum(least), read))
    tally = Tally()
    async with AsyncExitStack() as stack:
        ticket = await stack.enter_async_context(
            gateway.admit(context, info.id, cost, utility=body.utility, focus=body.focus, needs=needs)
        )
        if context.caller.show_cost:
            tally.cost = lambda: ticket.lease.cost
        most = asked.most(settings.default_max_tokens)
        if ticket.lease.short:
            most = max(longest) + -ticket.lease.short // (body.answers * len(prompts))
        params = body.params(most, asked.logprobs, asked.grammar) | {"whole": not body.stream}
        deltas = await stack.enter_async_context(aclosing(_metered(ticket, prompts, asked.field, params, tally)))
        if body.stream:
            waited = await stack.enter_async_context(aclosing(Waited(deltas)))
            # Waiting for the first piece turns a refusal by the engine into a status instead of a broken stream.
            await waited.ready(COMMENT_EVERY_S)
            events = asked.shape.events(waited.or_pauses(COMMENT_EVERY_S), tally, body.usage_in_stream)
            return LeasedStream(events, stack.pop_all(), ticket.deadline)
        pieces = [delta async for delta in deltas]
    return JSONResponse(asked.shape.whole(pieces, tally))


def _most(info: ModelInfo, asked: Generation, tokens: int, settings: GatewaySettings) -> int:
    """Most tokens of an answer to a prompt of so many.

    Raises:
        InvalidRequest: the context has no room beside the prompt; or, where that is strict, not for all of them.
    """
    wanted = asked.most(settings.default_max_tokens)
    if info.context is None:
        return wanted
    check_context(info.context, tokens, asked.max_tokens or 1 if settings.strict else 1, param=asked.field)
    return min(wanted, info.context - tokens)


def _check_terms(entitlements: Entitlements, info: ModelInfo, body: Sampled, asked: Generation) -> None:
    """Refuse another task's model, and what a tenant's level does not disclose."""
    check_task(info, Task.TEXT)
    own = entitlements.tier.level(info.id, info.floor)
    level = own if body.utility is None else min(own, round_level(body.utility))
    _check_disclosure(body, asked, entitlements.tier.disclosure(level))


def _check_disclosure(body: Sampled, asked: Generation, disclosed: Disclosure) -> None:
    """Refuse what a level does not disclose. Raises NotEntitled."""
    check_text_disclosure(
        disclosed,
        logprobs=asked.logprobs,
        probes=probes_of(body.logit_bias, body.repetition_penalty, asked.grammar),
        count_param="top_logprobs" if asked.chats else "logprobs",
    )


def _check_length(info: ModelInfo, asked: Generation, settings: GatewaySettings) -> None:
    """Refuse what cannot fit the context whatever it says, before anything is made of it."""
    if info.context is None:
        return
    if settings.strict and asked.max_tokens is not None and asked.max_tokens > info.context:
        name = "max_output_tokens" if asked.field == "input" else "max_tokens"
        raise InvalidRequest(
            f"{name} is {asked.max_tokens}, but the context of {info.id} is {info.context} tokens.",
            param=name,
            code="context_length_exceeded",
        )
    each = info.characters or MAX_CHARACTERS_PER_TOKEN
    for text in [asked.prompt] if asked.chats else [[text] for text in asked.prompt]:
        characters = sum(map(characters_of, text))
        if characters > each * info.context:
            said = f"your {asked.field} hold {characters} characters, of which a token has at most {each}"
            raise beyond_context(info.context, said, param=asked.field)


async def _metered(
    ticket: Ticket, prompts: list[list[int]], field: str, params: dict[str, Any], tally: Tally
) -> AsyncGenerator[TextDelta]:
    """The engine's deltas, booked on the lease as they come, so that a stream cut short is billed as far as it went.

    Those that tell of a prompt being read are booked and kept back: an answer begins with its first token.
    """
    async with aclosing(ticket.stream("generate", prompts, field, params)) as deltas:
        try:
            async for delta in deltas:
                tally.add(delta)
                ticket.lease.settle(tokens_in=tally.prompt, tokens_out=tally.completion)
                if delta.tokens or delta.finish_reason or delta.text:
                    yield delta
        except Exception as error:  # which a stream that has begun tells its client inside itself
            ticket.lease.broke(error)
            raise
