"""A prompt as it comes before its answer: its text, and its tokens' log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from deployments.contracts.catalog import TokenLogprob
from deployments.engines.text.seat import LogprobRecord


class Echo:
    """One prompt, as its tokens are written: special ones too, but for those that the tokenizer put before it.

    Args:
        tokenizer: of the `tokenizers` library.
        prompt: its tokens, at least one.
        put: those that the tokenizer puts before a text.

    Attributes:
        text: of all of them.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], put: Sequence[int]) -> None:
        self._tokenizer, self._prompt = tokenizer, prompt
        first = len(put) if put and list(prompt[: len(put)]) == list(put) else 0
        self.text = tokenizer.decode(list(prompt[first:]), skip_special_tokens=False)
        self._offsets = [0] * first + self._places(first)

    def logprobs(
        self, records: Sequence[LogprobRecord], most: int, rounded: Callable[[float], float]
    ) -> tuple[TokenLogprob, ...]:
        """Of each token; of the first, before which there is nothing, none.

        Args:
            records: of all but the first.
            most: likeliest tokens to tell beside each.
            rounded: a log-probability as the tenant may see it.
        """
        first = TokenLogprob(self._token(self._prompt[0]), None, (), self._offsets[0])
        rest = zip(self._prompt[1:], records, self._offsets[1:], strict=True)
        return (first, *(self._described(token, record, most, rounded, at) for token, record, at in rest))

    def _described(
        self, token: int, record: LogprobRecord, most: int, rounded: Callable[[float], float], at: int
    ) -> TokenLogprob:
        top = zip(record.tokens[:most].tolist(), record.values[:most].tolist(), strict=True)
        likeliest = tuple((self._token(other), rounded(value)) for other, value in top)
        return TokenLogprob(self._token(token), rounded(float(record.chosen)), likeliest, at)

    def _places(self, first: int) -> list[int]:
        """Where in the text each token from `first` on begins; one of an unfinished character where that does."""
        stream, at, places = DecodeStream(skip_special_tokens=False), 0, list[int]()
        for token in self._prompt[first:]:
            places.append(min(at, len(self.text)))
            try:
                at += len(stream.step(self._tokenizer, token) or "")
            except Exception:  # its plain one: bytes that are no text
                stream = DecodeStream(skip_special_tokens=False)
        return places

    def _token(self, token: int) -> str:
        """As inside a text: a decoder may take the space off the first word."""
        pair = [self._prompt[0], token]
        whole = self._tokenizer.decode(pair, skip_special_tokens=False)
        alone = self._tokenizer.decode(pair[:1], skip_special_tokens=False)
        return whole[len(alone) :] if whole.startswith(alone) else self._tokenizer.decode(pair[1:])
