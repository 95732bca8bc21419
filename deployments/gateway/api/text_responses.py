"""Answers of OpenAI's chat and text completions as served here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class PromptDetails(BaseModel):
    """Tokens of the prompts, by kind."""

    cached_tokens: int = Field(description="Those that the model had read before, for the same tenant.")
    audio_tokens: int = Field(default=0, description="Always 0.")


class Usage(BaseModel):
    """Tokens of one request."""

    prompt_tokens: int = Field(description="Tokens of the prompts, each counted once.")
    completion_tokens: int = Field(description="Tokens generated, over all answers.")
    total_tokens: int = Field(description="Their sum.")
    prompt_tokens_details: PromptDetails = Field(description="Tokens of the prompts, by kind.")
    cost: int | None = Field(
        default=None, description="In millionths of the plan's currency, where the tier shows it; else left out."
    )


class TopLogprob(BaseModel):
    """A likely token at some place of the answer."""

    token: str = Field(description="Its text.")
    logprob: float = Field(description="Natural logarithm of its probability.")
    bytes: list[int] | None = Field(description="Its text in UTF-8; null where it is a part of a character.")


class ContentLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob] = Field(description="The likeliest tokens at its place.")


class ChatLogprobs(BaseModel):
    """Log-probabilities of an answer, of its modulated logits."""

    content: list[ContentLogprob] = Field(description="One for each token.")
    refusal: None = Field(default=None, description="Always null.")


class CalledFunction(BaseModel):
    """A function to call."""

    name: str = Field(description="Its name.")
    arguments: str = Field(description="Its arguments: an object, in JSON.")


class ToolCall(BaseModel):
    """A call of a tool."""

    id: str = Field(description="By which a tool's turn names it.")
    type: Literal["function"] = Field(default="function", description="Always function.")
    function: CalledFunction = Field(description="What to call.")


class AnswerMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = Field(default="assistant", description="Always assistant.")
    content: str | None = Field(description="The answer; null where it is nothing but calls.")
    tool_calls: list[ToolCall] | None = Field(default=None, description="The functions to call, where there are any.")


class ChatChoice(BaseModel):
    """One answer."""

    index: int = Field(description="From 0.")
    message: AnswerMessage = Field(description="The answer.")
    finish_reason: str = Field(description="stop (the model or a stop string ended it), length or tool_calls.")
    logprobs: ChatLogprobs | None = Field(default=None, description="Where asked for and disclosed.")


class ChatCompletion(BaseModel):
    """Answer of POST /v1/chat/completions."""

    id: str = Field(description="Id of this answer.")
    object: Literal["chat.completion"] = Field(default="chat.completion", description="Kind of object.")
    created: int = Field(description="Unix time, in seconds.")
    model: str = Field(description="The model that answered.")
    choices: list[ChatChoice] = Field(description="The answers.")
    usage: Usage = Field(description="Tokens of the request.")


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a continuation, of its modulated logits; one entry of each list for each token."""

    tokens: list[str] = Field(description="Its text.")
    token_logprobs: list[float | None] = Field(
        description="Natural logarithm of its probability; null of an echoed prompt's first."
    )
    top_logprobs: list[dict[str, float] | None] = Field(description="The likeliest tokens at its place, and it.")
    text_offset: list[int] = Field(description="Where it begins in the text.")


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int = Field(description="From 0; the answers to the first prompt come first.")
    text: str = Field(description="The continuation; with echo the prompt before it.")
    finish_reason: str = Field(description="stop or length.")
    logprobs: CompletionLogprobs | None = Field(default=None, description="Where asked for and disclosed.")


class Completion(BaseModel):
    """Answer of POST /v1/completions."""

    id: str = Field(description="Id of this answer.")
    object: Literal["text_completion"] = Field(default="text_completion", description="Kind of object.")
    created: int = Field(description="Unix time, in seconds.")
    model: str = Field(description="The model that answered.")
    choices: list[CompletionChoice] = Field(description="The continuations.")
    usage: Usage = Field(description="Tokens of the request.")
