"""Answers of OpenAI's responses as served here, for the documentation; `response_shape` makes them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from deployments.gateway.api.text_responses import ContentLogprob


class OutputText(BaseModel):
    """A part of a message."""

    type: Literal["output_text"] = Field(default="output_text", description="Always output_text.")
    text: str = Field(description="The text.")
    annotations: list[Any] = Field(default_factory=list, description="Always empty.")
    logprobs: list[ContentLogprob] = Field(description="Where asked for and disclosed.")


class OutputMessage(BaseModel):
    """What the model says."""

    id: str = Field(description="Its id.")
    type: Literal["message"] = Field(default="message", description="Always message.")
    role: Literal["assistant"] = Field(default="assistant", description="Always assistant.")
    status: Literal["in_progress", "completed", "incomplete"] = Field(description="incomplete: it was too long.")
    content: list[OutputText] = Field(description="Its one part.")


class OutputCall(BaseModel):
    """A function to call."""

    id: str = Field(description="Its id.")
    type: Literal["function_call"] = Field(default="function_call", description="Always function_call.")
    call_id: str = Field(description="By which a function_call_output names it.")
    name: str = Field(description="The function's name.")
    arguments: str = Field(description="Its arguments: an object, in JSON.")
    status: Literal["in_progress", "completed"] = Field(description="How far it is.")


class InputDetails(BaseModel):
    """Tokens of the input, by kind."""

    cached_tokens: int = Field(description="Those that the model had read before, for the same tenant.")
    cache_write_tokens: int = Field(default=0, description="Always 0.")


class OutputDetails(BaseModel):
    """Tokens of the output, by kind."""

    reasoning_tokens: int = Field(default=0, description="Always 0.")


class ResponseUsage(BaseModel):
    """Tokens of one request."""

    input_tokens: int = Field(description="Tokens of the input.")
    input_tokens_details: InputDetails = Field(description="The same, by kind.")
    output_tokens: int = Field(description="Tokens generated.")
    output_tokens_details: OutputDetails = Field(description="The same, by kind.")
    total_tokens: int = Field(description="Their sum.")


class IncompleteDetails(BaseModel):
    """Why an answer is not complete."""

    reason: Literal["max_output_tokens"] = Field(description="It was too long.")


class ResponseObject(BaseModel):
    """Answer of POST /v1/responses; what the request says of itself is repeated in it."""

    id: str = Field(description="Id of this answer. Nothing is stored under it.")
    object: Literal["response"] = Field(default="response", description="Kind of object.")
    created_at: int = Field(description="Unix time, in seconds.")
    completed_at: int | None = Field(description="Unix time, in seconds.")
    status: Literal["in_progress", "completed", "incomplete", "failed"] = Field(description="How it ended.")
    model: str = Field(description="The model that answered.")
    output: list[OutputMessage | OutputCall] = Field(description="What was answered, in order.")
    incomplete_details: IncompleteDetails | None = Field(description="Why it is not complete.")
    error: dict[str, Any] | None = Field(description="Of a stream that failed: what went wrong.")
    usage: ResponseUsage | None = Field(description="Tokens of the request.")
    store: Literal[False] = Field(default=False, description="Nothing is stored.")
