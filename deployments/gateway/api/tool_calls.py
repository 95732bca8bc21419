"""Calls of tools in an answer's text, read while it comes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from deployments.contracts.tools import CallForm

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        at: which of its answer's calls it is.
        arguments: an object, in JSON.
        id: by which the client's answer to it names it.
    """

    at: int
    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")

    def whole(self) -> dict[str, Any]:
        """As OpenAI has it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}

    def piece(self) -> dict[str, Any]:
        """As OpenAI has it in a stream."""
        return {"index": self.at, **self.whole()}


class CallReader:
    """Parts one answer into its words and its calls. What looks like a call and is none stays words.

    Args:
        form: what a call looks like.
        names: of the functions that may be called.
    """

    def __init__(self, form: CallForm, names: Collection[str]) -> None:
        self._form, self._names = form, names
        self._held, self._count = "", 0

    @property
    def called(self) -> bool:
        """Whether there was a call."""
        return self._count > 0

    def push(self, text: str, last: bool = False) -> tuple[str, list[Call]]:
        """Words and calls that are complete with a piece of the answer, which may be its last."""
        self._held += text
        words, calls = self._bare(last) if self._form is CallForm.LLAMA else self._marked(last)
        if calls or (self.called and not words.strip()):
            words = words.strip()  # lines between calls say nothing
        return words, calls

    def _marked(self, last: bool) -> tuple[str, list[Call]]:
        words, calls = "", list[Call]()
        while True:
            before, opened, rest = self._held.partition(_OPEN)
            if not opened:
                kept = 0 if last else _overlap(self._held)
                at = len(self._held) - kept
                words, self._held = words + self._held[:at], self._held[at:]
                return words, calls
            inner, closed, after = rest.partition(_CLOSE)
            if not closed and not last:
                words, self._held = words + before, opened + rest
                return words, calls
            read = self._calls(inner)
            calls += read
            words += before if read else before + opened + inner + closed
            self._held = after

    def _bare(self, last: bool) -> tuple[str, list[Call]]:
        """A call is all of an answer that begins like one, so it is known at its end."""
        if not last and self._held.lstrip()[:1] in ("", "{"):
            return "", []
        text, self._held = self._held, ""
        calls = self._calls(text) if last and text.lstrip()[:1] == "{" else []
        return ("" if calls else text), calls

    def _calls(self, text: str) -> list[Call]:
        """The calls that a text is, one after another or in a list; none where any of it is something else."""
        found, decoder, text = list[Any](), json.JSONDecoder(), text.strip()
        while text:
            try:
                value, end = decoder.raw_decode(text)
            except (ValueError, RecursionError):
                return []
            found += value if isinstance(value, list) else [value]
            text = text[end:].lstrip(" \n;")
        calls = list[Call]()
        for value in found:
            name = value.get("name") if isinstance(value, dict) else None
            if not isinstance(name, str) or name not in self._names:
                return []
            arguments = value.get("arguments", value.get("parameters", {}))
            if not isinstance(arguments, dict):
                return []
            calls.append(Call(self._count + len(calls), name, json.dumps(arguments, ensure_ascii=False)))
        self._count += len(calls)
        return calls


def _overlap(text: str) -> int:
    """Length of the longest end of a text that begins a call's mark."""
    return next((n for n in range(min(len(text), len(_OPEN) - 1), 0, -1) if _OPEN.startswith(text[-n:])), 0)
