"""Requests of OpenAI's chat and text completions as served here; unknown fields are refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from deployments.contracts.grammar import Grammar
from deployments.gateway.api.schemas import FocusField, StrictModel, UtilityField, short
from deployments.gateway.api.text_grammars import Constrained
from policies.errors import InvalidRequest

MAX_CHOICES = 128
"""Most answers of one request, over all its prompts; of `n`, OpenAI's own limit."""

MOST_MESSAGES, MOST_PARTS, MOST_BIASED = 4096, 1024, 1024

Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]


class TextPart(StrictModel):
    """One text part of a message's content."""

    type: Literal["text"] = Field(description="Only text parts are supported.")
    text: str = Field(description="The text.")


def mended(text: str) -> str:
    """Text with U+FFFD for half characters, which JSON carries where a client cut a string; no tokenizer takes them."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _without_nulls(fields: Any) -> Any:
    """OpenAI's schema lets every option be null."""
    return {k: v for k, v in fields.items() if v is not None} if isinstance(fields, dict) else fields


class ChatMessage(StrictModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="Who speaks.")
    content: str | Annotated[list[TextPart], Field(fail_fast=True), short(MOST_PARTS)] = Field(
        description="What is said: text, or a list of text parts."
    )
    name: str | None = Field(default=None, description="Accepted and ignored.")

    _null_is_unset = model_validator(mode="before")(_without_nulls)

    @property
    def text(self) -> str:
        """The content as one string."""
        return mended(self.content if isinstance(self.content, str) else "".join(part.text for part in self.content))


class StreamOptions(StrictModel):
    """Options of a stream."""

    include_usage: bool = Field(default=False, description="Send token usage in a last chunk before [DONE].")


class GenerationRequest(Constrained):
    """What chat and text completions share."""

    model: str = Field(description="Model id; GET /v1/models lists them.", examples=["smollm2-135m-instruct"])
    stream: bool = Field(default=False, description="Send the answer as server-sent events while it is made.")
    stream_options: StreamOptions | None = Field(default=None, description="Only with stream.")
    max_tokens: int | None = Field(
        default=None, ge=1, description="Most tokens of an answer; left out, 512 for chat and 16 for a completion."
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
        gt=0.0,
        le=1.0,
        description="Nucleus sampling: probability mass to keep. Left out, the model's own, else 1.",
    )
    top_k: int | None = Field(
        default=None,
        ge=0,
        lt=2**31,
        description="Likeliest tokens to draw from; 0 is all. Left out, the model's own, else 0. Not OpenAI's.",
    )
    seed: int | None = Field(
        default=None, ge=-(2**63), lt=2**63, description="The same seed gives the same answer to the same request."
    )
    stop: str | list[str] | None = Field(
        default=None, description="Up to four strings that end the answer; they are not part of it."
    )
    frequency_penalty: Penalty = Field(default=0.0, description="Taken off a token's logit each time it has come.")
    presence_penalty: Penalty = Field(default=0.0, description="Taken off a token's logit once it has come.")
    logit_bias: Annotated[dict[int, Bias], short(MOST_BIASED), Field(max_length=MOST_BIASED)] = Field(
        default_factory=dict, description="Token id to what its logit is changed by; needs the tier's `logprobs`."
    )
    user: str | None = Field(default=None, description="Accepted and ignored.")
    focus: FocusField = Field(default_factory=dict)
    utility: UtilityField = None

    _null_is_unset = model_validator(mode="before")(_without_nulls)

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_shape(cls, stop: Any) -> Any:
        # A union's own errors would name its branches, not what to send.
        if isinstance(stop, str):
            return stop
        if isinstance(stop, list) and len(stop) <= 4 and all(isinstance(text, str) for text in stop):
            return stop
        raise ValueError("send a string or a list of up to four strings")

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

    def params(self, max_tokens: int | None, logprobs: int | None, grammar: Grammar | None) -> dict[str, Any]:
        """What the engine is told: its `SamplingParams` by name, and `n`."""
        return {
            "n": self.n,
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
            "stop": self.stops,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": tuple(self.logit_bias.items()),
            "logprobs": logprobs,
        } | ({} if grammar is None else {"grammar": grammar})


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True), short(MOST_MESSAGES)] = Field(
        min_length=1, description="The conversation so far."
    )
    max_completion_tokens: int | None = Field(default=None, ge=1, description="OpenAI's newer name of max_tokens.")
    logprobs: bool = Field(default=False, description="Tell the log-probability of each token; needs the tier's grant.")
    top_logprobs: int | None = Field(default=None, ge=0, le=20, description="Likeliest tokens to tell beside each.")

    @model_validator(mode="after")
    def _agree(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise _invalid("top_logprobs", "top_logprobs needs logprobs to be true.")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise _invalid("max_tokens", "Give max_completion_tokens or max_tokens, not both.")
        return self


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

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


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")


def _is_text(prompt: Any) -> bool:
    """A string or token ids, and not empty."""
    if isinstance(prompt, list):
        return bool(prompt) and all(type(token) is int and token >= 0 for token in prompt)
    return isinstance(prompt, str) and bool(prompt)
