"""What every request for text has: how its tokens are drawn, and at which terms."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from deployments.contracts.grammar import Grammar
from deployments.gateway.api.messages import mended
from deployments.gateway.api.schemas import FocusField, StrictModel, UtilityField, short
from deployments.gateway.api.tolerance import is_strict

MOST_BIASED = 1024
MOST_STOPS, STOPS_OF_OPENAI = 32, 4
SMALLEST_NUCLEUS = 1e-6
"""A top_p of 0 asks for the likeliest token alone."""

Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Repetition = Annotated[float, Field(gt=0.0, le=2.0, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]


class Sampled(StrictModel):
    """What chat, completions and responses share."""

    model: str = Field(description="Model id; GET /v1/models lists them.", examples=["smollm2-135m-instruct"])
    stream: bool = Field(default=False, description="Send the answer as server-sent events while it is made.")
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

    @property
    def answers(self) -> int:
        """Answers to each prompt."""
        return 1

    @property
    def usage_in_stream(self) -> Literal["none", "last", "each"]:
        """Where a stream tells usage: nowhere, in its last chunk, or in each."""
        return "none"

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings, empty ones dropped."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(mended(stop) for stop in given if stop)

    def params(self, max_tokens: int | None, logprobs: int | None, grammar: Grammar | None = None) -> dict[str, Any]:
        """What the engine is told: its `SamplingParams` by name, and `n`."""
        return {
            "n": self.answers,
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
