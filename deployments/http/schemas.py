"""Requests and responses of the OpenAI-compatible API as served here; unknown fields are refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from policies.terms import Level, Strength

FocusField = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Strength],
    Field(
        max_length=16,
        description="Class or word to strength in (-1, 1): positive favours it, negative avoids it."
        " Added to the tenant's standing focus.",
        examples=[{"ocean": 0.5}],
    ),
]
UtilityField = Annotated[
    Level | None, Field(description="A lower utility level than the key's own, in (0, 1].", examples=[0.8])
]


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(StrictModel):
    """One text part of a message's content."""

    type: Literal["text"] = Field(description="Only text parts are supported.")
    text: str = Field(description="The text.")


class ChatMessage(StrictModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="Who speaks.")
    content: str | list[TextPart] = Field(description="What is said: text, or a list of text parts.")
    name: str | None = Field(default=None, description="Accepted and ignored.")

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(StrictModel):
    """Options of a stream."""

    include_usage: bool = Field(default=False, description="Send token usage in a last chunk before [DONE].")


class ResponseFormat(StrictModel):
    """Format of the answer."""

    type: Literal["text"] = Field(description="Only free text is supported.")


class GenerationRequest(StrictModel):
    """What chat and text completions share."""

    model: str = Field(description="Model id; GET /v1/models lists them.", examples=["smollm2-135m-instruct"])
    stream: bool = Field(default=False, description="Send the answer as server-sent events while it is made.")
    stream_options: StreamOptions | None = Field(default=None, description="Only with stream.")
    max_tokens: int | None = Field(default=None, ge=1, description="Most tokens to generate; 512 if left out.")
    temperature: float = Field(
        default=1.0,
        ge=0.0,
        le=2.0,
        allow_inf_nan=False,
        description="Sampling temperature; 0 is greedy, for which a utility level is defined.",
    )
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, description="Nucleus sampling: probability mass to keep.")
    seed: int | None = Field(
        default=None, ge=-(2**63), lt=2**63, description="The same seed gives the same answer to the same request."
    )
    stop: str | Annotated[list[str], Field(max_length=4)] | None = Field(
        default=None, description="Up to four strings that end the answer; they are not part of it."
    )
    frequency_penalty: Literal[0] = Field(default=0, description="Only 0.")
    presence_penalty: Literal[0] = Field(default=0, description="Only 0.")
    n: Literal[1] = Field(default=1, description="One answer for each request.")
    user: str | None = Field(default=None, description="Accepted and ignored.")
    focus: FocusField = Field(default_factory=dict)
    utility: UtilityField = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, fields: Any) -> Any:
        """OpenAI's schema lets every option be null."""
        return {k: v for k, v in fields.items() if v is not None} if isinstance(fields, dict) else fields

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings, empty ones dropped."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in given if stop)


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, description="The conversation so far.")
    max_completion_tokens: int | None = Field(default=None, ge=1, description="OpenAI's newer name of max_tokens.")
    response_format: ResponseFormat | None = Field(default=None, description="Only {'type': 'text'}.")


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: str = Field(min_length=1, description="The text to continue.")


class Usage(BaseModel):
    """Tokens of one request."""

    prompt_tokens: int = Field(description="Tokens of the prompt.")
    completion_tokens: int = Field(description="Tokens generated.")
    total_tokens: int = Field(description="Their sum.")


class AnswerMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = Field(default="assistant", description="Always assistant.")
    content: str = Field(description="The answer.")


class ChatChoice(BaseModel):
    """One answer."""

    index: int = Field(description="Always 0.")
    message: AnswerMessage = Field(description="The answer.")
    finish_reason: str = Field(description="stop (the model or a stop string ended it) or length.")
    logprobs: None = Field(default=None, description="Not disclosed.")


class ChatCompletion(BaseModel):
    """Answer of POST /v1/chat/completions."""

    id: str = Field(description="Id of this answer.")
    object: Literal["chat.completion"] = Field(default="chat.completion", description="Kind of object.")
    created: int = Field(description="Unix time, in seconds.")
    model: str = Field(description="The model that answered.")
    choices: list[ChatChoice] = Field(description="One answer.")
    usage: Usage = Field(description="Tokens of the request.")


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int = Field(description="Always 0.")
    text: str = Field(description="The continuation.")
    finish_reason: str = Field(description="stop or length.")
    logprobs: None = Field(default=None, description="Not disclosed.")


class Completion(BaseModel):
    """Answer of POST /v1/completions."""

    id: str = Field(description="Id of this answer.")
    object: Literal["text_completion"] = Field(default="text_completion", description="Kind of object.")
    created: int = Field(description="Unix time, in seconds.")
    model: str = Field(description="The model that answered.")
    choices: list[CompletionChoice] = Field(description="One continuation.")
    usage: Usage = Field(description="Tokens of the request.")


class ModelCard(BaseModel):
    """One model as this key may use it."""

    id: str = Field(description="Model id.")
    object: Literal["model"] = Field(default="model", description="Kind of object.")
    created: int = Field(description="Unix time at which it was ready.")
    owned_by: str = Field(default="local", description="Always local.")
    task: str = Field(description="image-classification, image-segmentation or text-generation.")
    utility: float = Field(description="This key's level of the model.")
    lowest_utility: float = Field(description="The lowest level that can be asked for.")
    focus_classes: list[str] | None = Field(
        description="Names that focus may use; null for a text model, where any word of one token will do."
    )
    context: int | None = Field(default=None, description="Tokens of prompt and answer together.")


class ModelList(BaseModel):
    """Answer of GET /v1/models."""

    object: Literal["list"] = Field(default="list", description="Kind of object.")
    data: list[ModelCard] = Field(description="Models that this key may use and that are ready.")


class ErrorBody(BaseModel):
    """What went wrong, as OpenAI's API says it."""

    message: str = Field(description="What is wrong and what to change.")
    type: str = Field(description="Kind of error.")
    param: str | None = Field(description="The field at fault.")
    code: str | None = Field(description="A stable code.")


class ErrorResponse(BaseModel):
    """Body of every answer that is not a success."""

    error: ErrorBody = Field(description="The error.")


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "Malformed, unsupported or out-of-range field; `param` names it.",
        401: "Missing, unknown, revoked or expired key.",
        403: "A valid key that is not entitled to this.",
        404: "No such model for this tenant.",
        408: "The deadline passed.",
        413: "Body or image too large.",
        429: "A rate, concurrency or quota limit; see Retry-After.",
        503: "The store is away, a queue is full or a replica starts; see Retry-After.",
    }.items()
}
