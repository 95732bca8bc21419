"""Which token ends an answer, and what for."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from deployments.engines.text.sampling import SamplingParams


class Ending:
    """Tells where one answer ends by a token; by a stop text it ends in its `Transcript`, by length in the engine.

    Args:
        params: of the answer.
        ends: tokens by which the model ends its answers, which the engine minds.
    """

    def __init__(self, params: SamplingParams, ends: Collection[int]) -> None:
        self._stops, self._least = frozenset(params.stop_token_ids), params.min_tokens
        self._ends = frozenset() if params.ignore_eos else frozenset(ends)
        self._taken = 0

    def take(self, tokens: Sequence[int]) -> tuple[Sequence[int], int, bool]:
        """Those of new tokens that the answer tells, how many it takes, and whether one of them is a stop."""
        for at, token in enumerate(tokens):
            self._taken += 1
            if token in self._stops and self._taken > self._least:
                return tokens[:at], at + 1, True
        return tokens, len(tokens), False

    def reason(self, tokens: Sequence[int]) -> str:
        """Why the engine says that the answer is over after these."""
        return "stop" if tokens and tokens[-1] in self._ends else "length"
