"""How generated text looks on the wire: whole answers and server-sent events, as OpenAI's API has them."""

from __future__ import annotations

import json
import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal

from deployments.contracts.catalog import TextDelta, TokenLogprob
from deployments.gateway.api.errors import error_object
from deployments.gateway.api.streams import COMMENT
from deployments.gateway.api.tool_calls import Call, CallReader
from policies.errors import ServiceError

logger = logging.getLogger("deployments.gateway.api")

_REPLACEMENT = "\ufffd"


class Tally:
    """The tokens of a request, counted as its pieces come.

    Attributes:
        cost: what it has cost so far, in micro-units; None where that is not shown.
    """

    def __init__(self) -> None:
        self.prompt = self.completion = self.cached = 0
        self.cost: Callable[[], int] | None = None

    def add(self, delta: TextDelta) -> None:
        """Count a piece."""
        self.prompt, self.completion = delta.prompt_tokens, self.completion + delta.tokens
        self.cached = delta.cached_tokens

    def usage(self) -> dict[str, Any]:
        """OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0},
            **self.told_cost(),
        }

    def told_cost(self) -> dict[str, int]:
        """The cost as a part of any usage, where it is shown."""
        return {} if self.cost is None else {"cost": self.cost()}


class Shape(ABC):
    """What chat and completion share of an answer's form.

    Args:
        model: its id.
        logprobs: whether log-probabilities were asked for.
        reader: makes what finds calls of tools in one answer; None where there are none.
    """

    prefix: str
    object: str
    chunk_object: str

    def __init__(self, model: str, logprobs: bool, reader: Callable[[], CallReader] | None = None) -> None:
        self.base = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._logprobs, self._reader = logprobs, reader
        self._readers: dict[int, CallReader] = {}

    def _read(self, text: str) -> tuple[str, list[Call]]:
        """Words and calls of a whole answer."""
        return (text, []) if self._reader is None else self._reader().push(text, last=True)

    def whole(self, deltas: Sequence[TextDelta], tally: Tally) -> dict[str, Any]:
        """All answers of a request, from all their pieces."""
        pieces: dict[int, list[TextDelta]] = {}
        for delta in deltas:
            pieces.setdefault(delta.index, []).append(delta)
        choices = []
        for index, own in sorted(pieces.items()):
            words, calls = self._read("".join(delta.text for delta in own))
            tokens = [token for delta in own for token in delta.logprobs]
            logprobs = self.logprobs(tokens) if self._logprobs else None
            reason = _reason(own[-1].finish_reason, bool(calls))
            content = self.content(words, calls)
            choices.append({"index": index, **content, "logprobs": logprobs, "finish_reason": reason})
        return {**self.base, "object": self.object, "choices": choices, "usage": tally.usage()}

    async def events(
        self, deltas: AsyncIterator[TextDelta | None], tally: Tally, usage: Literal["none", "last", "each"]
    ) -> AsyncIterator[str]:
        """The answers as server-sent events, ending with [DONE]; an error becomes the last event before it.

        Where None comes in a piece's place, so does a comment in an event's.
        """

        def of_each() -> dict[str, Any]:
            return {} if usage == "none" else {"usage": tally.usage() if usage == "each" else None}

        told: set[int] = set()
        try:
            async for delta in deltas:
                if delta is None:
                    yield COMMENT
                    continue
                for event in self._events(delta, told):
                    yield _sse(event | of_each())
            if usage != "none":
                yield _sse({**self.base, "object": self.chunk_object, "choices": [], "usage": tally.usage()})
        except ServiceError as error:
            yield _sse(error_object(error))
        except Exception:
            logger.exception("a stream failed")
            yield _sse(error_object(ServiceError("The server failed on this request.")))
        if tally.cost is not None:
            yield f": x-cost {tally.cost()}\n\n"  # headers are gone by then, and nobody need ask for it
        yield "data: [DONE]\n\n"

    def _events(self, delta: TextDelta, told: set[int]) -> list[dict[str, Any]]:
        """The events of one piece; `told` holds the answers that have begun."""
        events = []
        if delta.index not in told and (opening := self.opening()):
            events.append(self._event(delta.index, opening, None, None))
        told.add(delta.index)
        words, calls, called = self._parted(delta)
        if words or delta.logprobs:
            logprobs = self.logprobs(delta.logprobs) if self._logprobs else None
            events.append(self._event(delta.index, self.piece(words), logprobs, None))
        events += [self._event(delta.index, {"delta": {"tool_calls": [call.piece()]}}, None, None) for call in calls]
        if delta.finish_reason:
            reason = _reason(delta.finish_reason, called)
            events.append(self._event(delta.index, self.piece(""), None, reason))
        return events

    def _parted(self, delta: TextDelta) -> tuple[str, list[Call], bool]:
        """Words and calls of a piece, and whether its answer has called at all."""
        if self._reader is None:
            return delta.text, [], False
        reader = self._readers.get(delta.index) or self._readers.setdefault(delta.index, self._reader())
        words, calls = reader.push(delta.text, last=delta.finish_reason is not None)
        return words, calls, reader.called

    def _event(
        self, index: int, content: dict[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self.base, "object": self.chunk_object, "choices": [choice]}

    def opening(self) -> dict[str, Any] | None:
        """What is sent before an answer's first piece."""
        return None

    @abstractmethod
    def content(self, text: str, calls: Sequence[Call] = ()) -> dict[str, Any]:
        """A whole answer's text and calls."""

    @abstractmethod
    def piece(self, text: str) -> dict[str, Any]:
        """One event's text."""

    @abstractmethod
    def logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Log-probabilities of tokens."""


class ChatShape(Shape):
    """A chat answer."""

    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> dict[str, Any]:
        """The role."""
        return {"delta": {"role": "assistant", "content": ""}}

    def content(self, text: str, calls: Sequence[Call] = ()) -> dict[str, Any]:
        """The assistant's message."""
        if not calls:
            return {"message": {"role": "assistant", "content": text}}
        made = [call.whole() for call in calls]
        return {"message": {"role": "assistant", "content": text or None, "tool_calls": made}}

    def piece(self, text: str) -> dict[str, Any]:
        """A part of it."""
        return {"delta": {"content": text} if text else {}}

    def logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """OpenAI's list of objects."""
        content = [
            likely(token.text, token.logprob) | {"top_logprobs": [likely(*other) for other in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}


class CompletionShape(Shape):
    """A text completion."""

    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def content(self, text: str, calls: Sequence[Call] = ()) -> dict[str, Any]:
        """The continuation."""
        return {"text": text}

    piece = content

    def logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """OpenAI's parallel lists."""
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [_with_likeliest(token) for token in tokens],
            "text_offset": [token.offset for token in tokens],
        }


def _with_likeliest(token: TokenLogprob) -> dict[str, float] | None:
    """Of a prompt's first token None."""
    return None if token.logprob is None else {token.text: token.logprob, **dict(reversed(token.top))}


def _reason(reason: str | None, called: bool) -> str | None:
    return "tool_calls" if called and reason == "stop" else reason


def likely(text: str, logprob: float | None) -> dict[str, Any]:
    """A token and how likely it was, as OpenAI has it."""
    return {"token": text, "logprob": logprob, "bytes": None if _REPLACEMENT in text else list(text.encode())}


def _sse(payload: dict[str, Any]) -> str:
    return f"data: {json.dumps(payload, ensure_ascii=False)}\n\n"
