"""What a client is told of one growing answer: its text, cut at stop texts, and its tokens' log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

from deployments.contracts.catalog import TokenLogprob
from deployments.engines.text.detokenizer import Detokenizer, StopMatcher
from deployments.engines.text.seat import LogprobRecord

Round = Callable[[float], float]


class Transcript:
    """One answer's tokens to text and log-probabilities, which are told with the text that their token is in.

    Args:
        tokenizer: of the `tokenizers` library.
        prompt: the tokens before the answer.
        stops: texts that end the answer.
        silent: tokens that no log-probability is told of: those that end an answer.
        rounded: a log-probability as the tenant may see it.
        least: tokens in whose text no stop is looked for.
        before: characters that were told before the answer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        stops: Sequence[str],
        silent: frozenset[int],
        rounded: Round,
        least: int = 0,
        before: int = 0,
    ) -> None:
        self._least = least
        self._silent, self._rounded = silent, rounded
        self._text, self._stops = Detokenizer(tokenizer, prompt), StopMatcher(stops)
        self._read = self._told = before
        self._held: list[tuple[int, TokenLogprob]] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop text was met."""
        return self._stops.stopped

    def push(self, tokens: Sequence[int], records: Sequence[LogprobRecord], most: int) -> str:
        """The text that new tokens complete, which may be empty.

        Args:
            records: one a token, or none at all.
            most: how many likeliest tokens to tell of each.
        """
        told = ""
        for at, token in enumerate(tokens):
            piece, before = self._text.push([token]), self._read
            self._read += len(piece)
            self._least -= 1
            told += piece if self._least >= 0 else self._stops.push(piece)
            if records and token not in self._silent:
                self._held.append((self._read, self._describe(token, records[at], most, before)))
        self._told += len(told)
        return told

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        rest = self._text.flush()
        self._read += len(rest)
        told = self._stops.push(rest) + self._stops.flush()
        self._told += len(told)
        return told

    def logprobs(self, last: bool) -> tuple[TokenLogprob, ...]:
        """Of the tokens whose text was told since the last call; of all that are left, at the end without a stop."""
        if last and not self.stopped:
            ready = len(self._held)
        else:
            ready = sum(end <= self._told for end, _ in self._held)
        taken, self._held = self._held[:ready], self._held[ready:]
        return tuple(entry for _, entry in taken)

    def _describe(self, token: int, record: LogprobRecord, most: int, offset: int) -> TokenLogprob:
        top = zip(record.tokens[:most].tolist(), record.values[:most].tolist(), strict=True)
        return TokenLogprob(
            self._text.token(token),
            self._rounded(float(record.chosen)),
            tuple((self._text.token(other), self._rounded(value)) for other, value in top),
            offset,
        )
