"""How a response looks on the wire: OpenAI's object and its sequence of events, from the pieces of one answer."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Literal

from deployments.contracts.catalog import TextDelta, TokenLogprob
from deployments.gateway.api.errors import error_object
from deployments.gateway.api.streams import COMMENT
from deployments.gateway.api.text_answers import Tally, likely
from deployments.gateway.api.tool_calls import Call, CallReader
from policies.errors import InvalidRequest, LimitExceeded, ServiceError

logger = logging.getLogger("deployments.gateway.api")

Event = dict[str, Any]


class ResponseShape:
    """The form of one response.

    Args:
        model: its id.
        told: what of the request is repeated.
        logprobs: whether log-probabilities were asked for.
        reader: makes what finds calls of tools in an answer; None where there are none.
    """

    def __init__(
        self, model: str, told: Mapping[str, Any], logprobs: bool, reader: Callable[[], CallReader] | None = None
    ) -> None:
        self._growing = Growing(model, told, logprobs, None if reader is None else reader())

    def whole(self, deltas: Sequence[TextDelta], tally: Tally) -> dict[str, Any]:
        """The response, from all pieces of its answer."""
        for delta in deltas:
            self._growing.push(delta)
        ended: dict[str, Any] = self._growing.end(tally)[-1]["response"]
        return ended

    async def events(
        self, deltas: AsyncIterator[TextDelta | None], tally: Tally, _usage: Literal["none", "last", "each"]
    ) -> AsyncIterator[str]:
        """The response as server-sent events; an error becomes the last of them, `response.failed`.

        Where None comes in a piece's place, so does a comment in an event's.
        """
        for event in self._growing.begin():
            yield _sse(event)
        try:
            async for delta in deltas:
                if delta is None:
                    yield COMMENT
                    continue
                for event in self._growing.push(delta):
                    yield _sse(event)
            for event in self._growing.end(tally):
                yield _sse(event)
        except ServiceError as error:
            yield _sse(self._growing.fail(error))
        except Exception:
            logger.exception("a stream failed")
            yield _sse(self._growing.fail(ServiceError("The server failed on this request.")))
        if tally.cost is not None:
            yield f": x-cost {tally.cost()}\n\n"  # headers are gone by then


class Growing:
    """One response while its answer comes. Each method gives the events that tell of what it did."""

    def __init__(self, model: str, told: Mapping[str, Any], logprobs: bool, reader: CallReader | None) -> None:
        self._base = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            **told,
        }
        self._logprobs, self._reader = logprobs, reader
        self._output: list[dict[str, Any]] = []
        self._part: dict[str, Any] | None = None  # of the message that is being written
        self._cut = False
        self._number = 0

    def begin(self) -> list[Event]:
        """It is under way."""
        return [self._event(f"response.{kind}", response=self._response("in_progress")) for kind in _BEGUN]

    def push(self, delta: TextDelta) -> list[Event]:
        """A piece of the answer."""
        self._cut = delta.finish_reason == "length"
        words, calls = delta.text, list[Call]()
        if self._reader is not None:
            words, calls = self._reader.push(delta.text, last=delta.finish_reason is not None)
        events = self._say(words, delta.logprobs) if words or (self._logprobs and delta.logprobs) else []
        for call in calls:
            events += [*self._close("completed"), *self._call(call)]
        return events

    def end(self, tally: Tally) -> list[Event]:
        """The answer is over."""
        status = "incomplete" if self._cut else "completed"
        events = [] if self._output else self._open()
        events += self._close(status)
        details = {"reason": "max_output_tokens"} if self._cut else None
        response = self._response(status, incomplete_details=details, usage=_usage(tally))
        return [*events, self._event(f"response.{status}", response=response)]

    def fail(self, error: ServiceError) -> Event:
        """The answer broke off."""
        said = error_object(error)["error"]
        code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), "server_error")
        told = {"code": code, "message": said["message"], "param": said["param"], "type": said["type"]}
        return self._event("response.failed", response=self._response("failed", error=told))

    def _say(self, words: str, tokens: Sequence[TokenLogprob]) -> list[Event]:
        events = [] if self._part else self._open()
        assert self._part is not None
        logprobs = [_of_token(token) for token in tokens] if self._logprobs else []
        self._part["text"] += words
        self._part["logprobs"] += logprobs
        return [*events, self._of_part("response.output_text.delta", delta=words, logprobs=logprobs)]

    def _open(self) -> list[Event]:
        self._part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant"}
        added = self._add({**item, "status": "in_progress", "content": []})
        self._output[-1]["content"] = [self._part]
        return [added, self._of_part("response.content_part.added", part=_copy(self._part))]

    def _close(self, status: str) -> list[Event]:
        if self._part is None:
            return []
        part, self._output[-1]["status"] = self._part, status
        said = {"text": part["text"], "logprobs": part["logprobs"]}
        events = [
            self._of_part("response.output_text.done", **said),
            self._of_part("response.content_part.done", part=_copy(part)),
            self._done(),
        ]
        self._part = None
        return events

    def _call(self, call: Call) -> list[Event]:
        item = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", "call_id": call.id, "name": call.name}
        added = self._add({**item, "arguments": "", "status": "in_progress"})
        self._output[-1] |= {"arguments": call.arguments, "status": "completed"}
        of = {"item_id": item["id"], "output_index": len(self._output) - 1}
        return [
            added,
            self._event("response.function_call_arguments.delta", delta=call.arguments, **of),
            self._event("response.function_call_arguments.done", arguments=call.arguments, name=call.name, **of),
            self._done(),
        ]

    def _add(self, item: dict[str, Any]) -> Event:
        self._output.append(item)
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=_copy(item))

    def _done(self) -> Event:
        at = len(self._output) - 1
        return self._event("response.output_item.done", output_index=at, item=_copy(self._output[at]))

    def _of_part(self, kind: str, **fields: Any) -> Event:
        at = len(self._output) - 1
        return self._event(kind, item_id=self._output[at]["id"], output_index=at, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        number, self._number = self._number, self._number + 1
        return {"type": kind, "sequence_number": number, **fields}

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        ended = int(time.time()) if status in ("completed", "incomplete") else None
        rest = {"error": None, "incomplete_details": None, "usage": None, **more}
        return {**self._base, "status": status, "completed_at": ended, "output": _copy(self._output), **rest}


_BEGUN = ("created", "in_progress")
_CODES: dict[type[ServiceError], str] = {LimitExceeded: "rate_limit_exceeded", InvalidRequest: "invalid_prompt"}
"""Of the few codes that OpenAI's type knows; the message says what it was."""


def _usage(tally: Tally) -> dict[str, Any]:
    return {
        "input_tokens": tally.prompt,
        "input_tokens_details": {"cached_tokens": tally.cached, "cache_write_tokens": 0},
        "output_tokens": tally.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tally.prompt + tally.completion,
        **tally.told_cost(),
    }


def _of_token(token: TokenLogprob) -> dict[str, Any]:
    told = [_with_bytes(likely(*other)) for other in token.top]
    return _with_bytes(likely(token.text, token.logprob)) | {"top_logprobs": told}


def _with_bytes(told: dict[str, Any]) -> dict[str, Any]:
    # A chat has null for a part of a character; the type of responses wants a list.
    return told | {"bytes": told["bytes"] or []}


def _copy(value: Any) -> Any:
    """Of an item that goes on growing, as it is now."""
    if isinstance(value, dict):
        return {name: _copy(part) for name, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value


def _sse(event: Event) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"
