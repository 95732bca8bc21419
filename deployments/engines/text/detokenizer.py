"""Tokens to text while they come: characters held back until complete, stop texts cut exactly."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_REPLACEMENT = "\ufffd"
_CONTEXT = 6
"""Tokens of the prompt decoded along, so that a leading space is told from the start of a text."""


class Detokenizer:
    """Decodes one growing sequence; special tokens are left out.

    The joined pieces are what the tokenizer makes of all tokens at once. Only bytes that are no text may differ: a
    tokenizer with byte fallback takes back whole characters that stand before them, which a stream cannot.

    Args:
        tokenizer: of the `tokenizers` library.
        prompt: the tokens before the answer.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        context = list(prompt[-_CONTEXT:])
        # A stream would tell an unfinished character of the prompt as the answer's.
        self._context = [] if tokenizer.decode(context).endswith(_REPLACEMENT) else context
        self._alone = self._context
        self._stream = DecodeStream(ids=self._context, skip_special_tokens=True)
        self._held: list[int] = []

    def push(self, tokens: Sequence[int]) -> str:
        """The text that these tokens complete, which may be empty."""
        return "".join(map(self._step, tokens))

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        rest, self._held = self._after(self._context, self._held), []
        return rest

    def token(self, token: int) -> str:
        """The text of one token, as inside a text: with its leading space."""
        return self._after(self._alone, [token])

    def _step(self, token: int) -> str:
        self._held.append(token)
        try:
            piece = self._stream.step(self._tokenizer, token)
        except Exception:  # its plain one: bytes that are no text have changed what it told before
            piece = self._tokenizer.decode(self._held)
            self._stream = DecodeStream(ids=self._held, skip_special_tokens=True)
        if piece:
            self._context, self._held = self._held, []
        return piece or ""

    def _after(self, context: list[int], tokens: list[int]) -> str:
        before = self._tokenizer.decode(context)
        return self._tokenizer.decode(context + tokens)[len(before) :]


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
