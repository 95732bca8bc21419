"""The grammars of a step's sequences, as one mask over its logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deployments.engines.text.grammars.matcher import Matcher

_WORD = 32


class Masks:
    """Keeps each sequence to its grammar: what may not come next cannot be drawn.

    Args:
        vocabulary: V, columns of the logits.
        device: where the logits are.
    """

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        self._vocabulary, self._device = vocabulary, device
        self._shifts = torch.arange(_WORD, dtype=torch.int32, device=device)
        self._bits = torch.empty(0, 0, dtype=torch.int32)
        self._matchers: Sequence[Matcher | None] = ()
        self._tokens: Tensor | None = None

    def advance(self) -> None:
        """Take note of the last step's tokens: before the next one's forward, which the device then does meanwhile."""
        tokens, self._tokens = self._tokens, None
        if tokens is not None:
            for token, matcher in zip(tokens.tolist(), self._matchers, strict=True):
                if matcher is not None:
                    matcher.take(token)
            self._matchers = ()

    def forget(self) -> None:
        """The step under way is taken back: it has chosen nothing."""
        self._tokens, self._matchers = None, ()

    def applied(self, scores: Tensor, matchers: Sequence[Matcher | None]) -> Tensor:
        """Scores [N, V] with all at -inf that a row's grammar does not allow next; rows without one are as they were.

        Args:
            matchers: one a row; rows beyond them have none.
        """
        words = max((matcher.words for matcher in matchers if matcher is not None), default=0)
        if not words:
            return scores
        matchers = [*matchers, *[None] * (len(scores) - len(matchers))]
        if len(self._bits) < len(scores):
            self._bits = torch.empty(len(scores), words, dtype=torch.int32, pin_memory=self._device.type == "cuda")
        self._matchers = matchers
        bits = self._bits[: len(scores)]
        for row, matcher in zip(bits, matchers, strict=True):
            if matcher is None:
                row.fill_(-1)
            else:
                matcher.fill(row)
        there = bits.to(self._device, non_blocking=True)
        allowed = (there[:, :, None] >> self._shifts & 1).bool().flatten(1)[:, : self._vocabulary]
        return scores.masked_fill(~allowed, -torch.inf)

    def chose(self, tokens: Tensor) -> None:
        """The tokens [N] int64 that the step chose, one a row of `applied`, if that was called."""
        if self._matchers:
            self._tokens = tokens
