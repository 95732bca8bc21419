"""Requests of OpenAI's chat and text completions as served here; what is not is in `parameters`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from deployments.contracts.grammar import Grammar
from deployments.gateway.api import parameters
from deployments.gateway.api.messages import ChatMessage, mended
from deployments.gateway.api.sampled import Sampled
from deployments.gateway.api.schemas import StrictModel, short
from deployments.gateway.api.text_grammars import Constrained
from deployments.gateway.api.tolerance import Unserved, is_strict
from deployments.gateway.api.tools import Offer, ToolChoice, Tools
from policies.errors import InvalidRequest

MAX_CHOICES = 128
"""Most answers of one request, over all its prompts; of `n`, OpenAI's own limit."""

MOST_MESSAGES = 1024


class StreamOptions(StrictModel):
    """Options of a stream."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.STREAM_OPTIONS
    where: ClassVar[str] = "stream_options."

    include_usage: bool = Field(default=False, description="Send token usage in a last chunk before [DONE].")
    continuous_usage_stats: bool = Field(
        default=False, description="With include_usage: in every chunk, so far. Not OpenAI's."
    )


class GenerationRequest(Constrained, Sampled):
    """What chat and text completions share."""

    stream_options: StreamOptions | None = Field(default=None, description="Only with stream.")
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens of an answer, as far as the context has room; left out, the deployment's"
        " `default_max_tokens` for chat, and 16 for a completion.",
    )
    n: int = Field(default=1, ge=1, le=MAX_CHOICES, description="Answers to each prompt.")

    @model_validator(mode="after")
    def _stream_options_with_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise _invalid("stream_options", "stream_options needs stream to be true.")
        return self

    @property
    def answers(self) -> int:
        """Answers to each prompt."""
        return self.n

    @property
    def usage_in_stream(self) -> Literal["none", "last", "each"]:
        """Where a stream tells usage: nowhere, in its last chunk, or in each."""
        if self.stream_options is None or not self.stream_options.include_usage:
            return "none"
        return "each" if self.stream_options.continuous_usage_stats else "last"


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.CHAT

    messages: Annotated[list[ChatMessage], Field(fail_fast=True), short(MOST_MESSAGES)] = Field(
        min_length=1, description="The conversation so far."
    )
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="OpenAI's newer name of max_tokens; of both, the smaller holds."
    )
    logprobs: bool = Field(default=False, description="Tell the log-probability of each token; needs the tier's grant.")
    top_logprobs: int | None = Field(default=None, ge=0, le=20, description="Likeliest tokens to tell beside each.")

    tools: Tools = Field(default_factory=list, description="Functions that the model may call.")
    tool_choice: ToolChoice | None = Field(
        default=None,
        description="none, auto, required, or a function; below level 1.0 the last two need the tier's `logprobs`.",
    )
    parallel_tool_calls: bool = Field(
        default=True, description="Whether an answer that has to call may call several functions, where the model can."
    )

    def offer(self) -> Offer:
        """Its tools.

        Raises:
            InvalidRequest: as `Offer`.
        """
        return Offer(self.tools, self.tool_choice, self.parallel_tool_calls)

    @model_validator(mode="after")
    def _agree(self) -> ChatRequest:
        asked = self.top_logprobs is not None if is_strict() else bool(self.top_logprobs)
        if asked and not self.logprobs:
            raise _invalid("top_logprobs", "top_logprobs needs logprobs to be true.")
        if is_strict() and self.max_tokens is not None and self.max_completion_tokens is not None:
            raise _invalid("max_tokens", "Give max_completion_tokens or max_tokens, not both.")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Of an answer, whichever of its names it came under."""
        return min((m for m in (self.max_tokens, self.max_completion_tokens) if m is not None), default=None)


class ChatByUrl(ChatRequest):
    """POST /models/{id}/v1/chat/completions."""

    model: str | None = Field(default=None, description="The URL names it.")  # type: ignore[assignment]


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.COMPLETION

    prompt: str | list[int] | list[str | list[int]] = Field(
        description="The text to continue, as a string or token ids; or a list of such texts."
    )
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=5,
        description="Log-probabilities, with so many likeliest; needs the tier's grant.",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=0,
        description="Most tokens of an answer, as far as the context has room; left out, 16. With echo it may be 0.",
    )
    echo: bool = Field(
        default=False,
        description="Put the prompt before its answer; with logprobs, which then are told of its tokens, too, `n` is 1,"
        " and there is no focus.",
    )

    @field_validator("logprobs", mode="before")
    @classmethod
    def _a_number(cls, logprobs: Any) -> Any:
        # Chat's form of it; Python counts true as 1, and a client that says false wants none, not no alternatives.
        if logprobs is True:
            raise ValueError("send how many of the likeliest to tell, 0 to 5, not true")
        return None if logprobs is False else logprobs

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt_shape(cls, prompt: Any) -> Any:
        if is_text(prompt):
            return prompt
        if isinstance(prompt, list) and 0 < len(prompt) <= MAX_CHOICES and all(map(is_text, prompt)):
            return prompt
        raise ValueError(f"send a text (a string, or a list of token ids) or a list of 1 to {MAX_CHOICES} of them")

    @model_validator(mode="after")
    def _bounded(self) -> CompletionRequest:
        if len(self.prompts) * self.n > MAX_CHOICES:
            asked = f"{len(self.prompts)} prompts with n of {self.n}"
            raise _invalid("n", f"{asked} are more than the {MAX_CHOICES} answers that one request may ask for.")
        return self

    @model_validator(mode="after")
    def _echoed(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise _invalid("max_tokens", "max_tokens is at least 1; with echo it may be 0.")
        if self.echo and self.logprobs is not None and (self.n > 1 or self.focus):
            name = "n" if self.n > 1 else "focus"
            raise _invalid(name, f"echo with logprobs tells of a prompt once, without focus; leave {name} out.")
        return self

    def params(self, max_tokens: int | None, logprobs: int | None, grammar: Grammar | None = None) -> dict[str, Any]:
        """What the engine is told, and whether the prompt is."""
        return super().params(max_tokens, logprobs, grammar) | ({"echo": True} if self.echo else {})

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each text to continue."""
        match self.prompt:
            case str() as text:
                return [mended(text)]
            case [int(), *_] as tokens:
                return [tokens]  # type: ignore[list-item]
            case texts:
                return [mended(text) if isinstance(text, str) else text for text in texts]  # type: ignore[misc]


class CompletionByUrl(CompletionRequest):
    """POST /models/{id}/v1/completions."""

    model: str | None = Field(default=None, description="The URL names it.")  # type: ignore[assignment]


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")


def is_text(prompt: Any) -> bool:
    """A string or token ids, and not empty."""
    if isinstance(prompt, list):
        return bool(prompt) and set(map(type, prompt)) == {int} and min(prompt) >= 0  # no loop: of a hundred thousand
    return isinstance(prompt, str) and bool(prompt)
