"""What a replica tells the gateway about its model. Pydantic only."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from deployments.config import Task

DEFAULT_MAX_TOKENS = 512
"""Of an answer whose request sets no limit, as far as the context has room."""


class ModelInfo(BaseModel):
    """One model as the gateway knows it: all that admission and focus need, and what `GET /v1/models` shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    task: Task
    classes: tuple[str, ...] | None
    """Names that focus may use; None for a text model, whose words the engine checks."""
    floor: float
    """The lowest level the model delivers, a multiple of 0.01."""
    context: int | None = None
    """Tokens of prompt and answer together, for a text model."""
    created: int
    """Unix time at which the replica was ready."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """One piece of a generated text. Light, since the gateway unpickles it.

    Attributes:
        text: new text; may be empty where a character or a stop string is not complete yet.
        tokens: tokens generated since the last piece.
        finish_reason: `stop`, `length`, or None while the answer goes on.
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens generated so far.
    """

    text: str
    tokens: int
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
