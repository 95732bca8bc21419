"""Tokens to text while they come: characters held back until complete, stop texts cut exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]

_REPLACEMENT = "\ufffd"
_LONGEST_CHARACTER = 4
"""Bytes of a UTF-8 character, so also tokens: after these a replacement character is a fact, not a promise."""
_CONTEXT = 6
"""Tokens of the prompt decoded along, so that a leading space is told from the start of a text."""


class Detokenizer:
    """Decodes one growing sequence.

    Args:
        decode: token ids to text, special tokens left out.
        prompt: the tokens before the answer.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(prompt[-_CONTEXT:])
        self._known = len(self._window)

    def push(self, tokens: Sequence[int]) -> str:
        """The text that these tokens complete, which may be empty."""
        self._window += tokens
        return self._emit(final=False)

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        return self._emit(final=True)

    def _emit(self, final: bool) -> str:
        before, after = self._decode(self._window[: self._known]), self._decode(self._window)
        pending = len(self._window) - self._known
        if after.endswith(_REPLACEMENT) and pending <= _LONGEST_CHARACTER and not final:
            return ""
        self._window = self._window[-max(_CONTEXT, pending) :] if pending else self._window
        self._known = len(self._window)
        return after[len(before) :]


class StopMatcher:
    """Cuts a growing text at the first of several stop texts, wherever the tokens fall.

    Attributes:
        stopped: whether a stop text was met; nothing more is answered then.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is certain to belong to the answer."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._take(min(found))
        return self._take(len(self._held) - self._possible())

    def flush(self) -> str:
        """What was held back in case a stop text completed."""
        return "" if self.stopped else self._take(len(self._held))

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _possible(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
