"""What a replica tells the gateway about its model. Pydantic only."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from deployments.config import Task
from deployments.contracts.tools import CallForm

DEFAULT_COMPLETION_TOKENS = 16
"""Of a text completion whose request sets no limit, as in OpenAI's API."""


class ModelInfo(BaseModel):
    """One model as the gateway knows it: all that admission and focus need, and what `GET /v1/models` shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    task: Task
    classes: tuple[str, ...] | None
    """Names that focus may use; None for a text model, whose words the engine checks."""
    floor: float
    """The lowest level the model delivers, a multiple of 0.01; 0.01 while that is not known."""
    pending: str = ""
    """What it does not serve yet, in a few words: while there are any, level 1.0 without focus is all it serves."""
    context: int | None = None
    """Tokens of prompt and answer together, for a text model."""
    form: str | None = None
    """Digest of what makes its prompts into tokens, which a gateway asks for once; None: they are sent as text."""
    characters: int | None = None
    """Most that one of its tokens stands for, where that is known."""
    dimensions: int | None = None
    """Of an embedding."""
    tools: CallForm | None = None
    """How a text model calls tools; None where it cannot."""
    aliases: tuple[str, ...] = ()
    """Other names that clients may call it by."""
    created: int
    """Unix time at which the replica was ready."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of an answer and how likely it was, of the modulated logits.

    Attributes:
        text: the token; a replacement character where it is a part of one.
        logprob: natural logarithm of its probability, rounded as the tenant's disclosure says; None of a prompt's
            first token.
        top: (text, logprob) of the likeliest tokens at its place, falling.
        offset: characters of the answer before it, and of the prompt where that is told. Its text alone does not add up
            to that: a tokenizer may leave the space before a word out where the word stands alone.
    """

    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()
    offset: int = 0


@dataclass(frozen=True, slots=True)
class TextDelta:
    """One piece of a generated text. Light, since the gateway unpickles it.

    Attributes:
        text: new text; may be empty where a character or a stop string is not complete yet.
        tokens: tokens generated since the last piece of this answer; 0 while its prompt is being read, and of the
            prompt itself.
        finish_reason: `stop`, `length`, or None while the answer goes on.
        prompt_tokens: tokens of all prompts of the request that have been read so far.
        completion_tokens: tokens of this answer generated so far.
        index: which of the request's answers this belongs to.
        logprobs: of the tokens that end in `text`, where they were asked for.
        cached_tokens: of `prompt_tokens`, those that the model had in its cache.
    """

    text: str
    tokens: int
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens: int = 0
