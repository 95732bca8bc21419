"""Requests of OpenAI's chat and text completions as served here; what is not is in `parameters`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from deployments.contracts.grammar import Grammar
from deployments.gateway.api import parameters
from deployments.gateway.api.messages import ChatMessage, mended
from deployments.gateway.api.schemas import FocusField, StrictModel, UtilityField, short
from deployments.gateway.api.text_grammars import Constrained
from deployments.gateway.api.tolerance import Unserved, is_strict
from deployments.gateway.api.tools import Offer, ToolChoice, Tools
from policies.errors import InvalidRequest

MAX_CHOICES = 128
"""Most answers of one request, over all its prompts; of `n`, OpenAI's own limit."""

MOST_MESSAGES, MOST_BIASED = 1024, 1024
MOST_STOPS, STOPS_OF_OPENAI = 32, 4
SMALLEST_NUCLEUS = 1e-6
"""A top_p of 0 asks for the likeliest token alone."""

Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Repetition = Annotated[float, Field(gt=0.0, le=2.0, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]


class StreamOptions(StrictModel):
    """Options of a stream."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.STREAM_OPTIONS
    where: ClassVar[str] = "stream_options."

    include_usage: bool = Field(default=False, description="Send token usage in a last chunk before [DONE].")
    continuous_usage_stats: bool = Field(
        default=False, description="With include_usage: in every chunk, so far. Not OpenAI's."
    )


class GenerationRequest(Constrained):
    """What chat and text completions share."""

    model: str = Field(description="Model id; GET /v1/models lists them.", examples=["smollm2-135m-instruct"])
    stream: bool = Field(default=False, description="Send the answer as server-sent events while it is made.")
    stream_options: StreamOptions | None = Field(default=None, description="Only with stream.")
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens of an answer, as far as the context has room; left out, the deployment's"
        " `default_max_tokens` for chat, and 16 for a completion.",
    )
    n: int = Field(default=1, ge=1, le=MAX_CHOICES, description="Answers to each prompt.")
    temperature: float | None = Field(
        default=None,
        ge=0.0,
        le=2.0,
        allow_inf_nan=False,
        description="Sampling temperature; 0 is greedy, for which a utility level is defined. Left out, the model's own"
        " (its generation_config), else 1.",
    )
    top_p: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="Nucleus sampling: probability mass to keep; 0 keeps the likeliest token. Left out, the model's"
        " own, else 1.",
    )
    top_k: int | None = Field(
        default=None,
        ge=-1,
        lt=2**31,
        description="Likeliest tokens to draw from; 0 and -1 are all. Left out, the model's own, else 0. Not OpenAI's.",
    )
    min_p: Probability = Field(
        default=0.0, description="Draw from tokens at least so likely beside the likeliest. Not OpenAI's."
    )
    seed: int | None = Field(
        default=None, ge=-(2**63), lt=2**63, description="The same seed gives the same answer to the same request."
    )
    stop: str | list[str] | None = Field(
        default=None, description=f"Up to {MOST_STOPS} strings that end the answer; they are not part of it."
    )
    stop_token_ids: Annotated[list[TokenId], short(MOST_STOPS)] = Field(
        default_factory=list, description="Tokens that end the answer; they are not part of it. Not OpenAI's."
    )
    ignore_eos: bool = Field(default=False, description="Go on where the model would end. Not OpenAI's.")
    min_tokens: int = Field(
        default=0, ge=0, description="Tokens before which nothing ends the answer but its length. Not OpenAI's."
    )
    frequency_penalty: Penalty = Field(default=0.0, description="Taken off a token's logit each time it has come.")
    presence_penalty: Penalty = Field(default=0.0, description="Taken off a token's logit once it has come.")
    repetition_penalty: Repetition = Field(
        default=1.0,
        description="Divides a token's positive logit, and multiplies a negative one, once prompt or answer have it;"
        " below level 1.0 it needs the tier's `logprobs`. Not OpenAI's.",
    )
    logit_bias: Annotated[dict[int, Bias], short(MOST_BIASED), Field(max_length=MOST_BIASED)] = Field(
        default_factory=dict, description="Token id to what its logit is changed by; needs the tier's `logprobs`."
    )
    focus: FocusField = Field(default_factory=dict)
    utility: UtilityField = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_shape(cls, stop: Any) -> Any:
        # A union's own errors would name its branches, not what to send.
        if isinstance(stop, str):
            return stop
        most = STOPS_OF_OPENAI if is_strict() else MOST_STOPS
        if isinstance(stop, list) and len(stop) <= most and all(isinstance(text, str) for text in stop):
            return stop
        raise ValueError(f"send a string or a list of up to {most} strings")

    @model_validator(mode="after")
    def _stream_options_with_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise _invalid("stream_options", "stream_options needs stream to be true.")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings, empty ones dropped."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(mended(stop) for stop in given if stop)

    @property
    def usage_in_stream(self) -> Literal["none", "last", "each"]:
        """Where a stream tells usage: nowhere, in its last chunk, or in each."""
        if self.stream_options is None or not self.stream_options.include_usage:
            return "none"
        return "each" if self.stream_options.continuous_usage_stats else "last"

    def params(self, max_tokens: int | None, logprobs: int | None, grammar: Grammar | None = None) -> dict[str, Any]:
        """What the engine is told: its `SamplingParams` by name, and `n`."""
        return {
            "n": self.n,
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "top_p": None if self.top_p is None else max(self.top_p, SMALLEST_NUCLEUS),
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "min_p": self.min_p,
            "seed": self.seed,
            "stop": self.stops,
            "stop_token_ids": tuple(self.stop_token_ids),
            "ignore_eos": self.ignore_eos,
            "min_tokens": self.min_tokens,
            "repetition_penalty": self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": tuple(self.logit_bias.items()),
            "logprobs": logprobs,
        } | ({} if grammar is None else {"grammar": grammar})


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

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt_shape(cls, prompt: Any) -> Any:
        if _is_text(prompt):
            return prompt
        if isinstance(prompt, list) and 0 < len(prompt) <= MAX_CHOICES and all(map(_is_text, prompt)):
            return prompt
        raise ValueError(f"send a text (a string, or a list of token ids) or a list of 1 to {MAX_CHOICES} of them")

    @model_validator(mode="after")
    def _bounded(self) -> CompletionRequest:
        if len(self.prompts) * self.n > MAX_CHOICES:
            asked = f"{len(self.prompts)} prompts with n of {self.n}"
            raise _invalid("n", f"{asked} are more than the {MAX_CHOICES} answers that one request may ask for.")
        return self

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


def _is_text(prompt: Any) -> bool:
    """A string or token ids, and not empty."""
    if isinstance(prompt, list):
        return bool(prompt) and set(map(type, prompt)) == {int} and min(prompt) >= 0  # no loop: of a hundred thousand
    return isinstance(prompt, str) and bool(prompt)
