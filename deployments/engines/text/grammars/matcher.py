"""One answer's place in its grammar: which tokens may come next. It never raises; a fault ends its answer alone."""

from __future__ import annotations

from collections.abc import Collection

import torch
from llguidance import LLMatcher
from torch import Tensor


class Matcher:
    """Where an answer is in its grammar.

    Args:
        matcher: the library's own, of no other answer.
        tokens: N, that its tokenizer has.
        ends: those that end an answer.
        param: the request's field that the grammar came in.

    Attributes:
        words: of 32 bits, of a mask over all tokens.
        fault: why the grammar cannot be followed any further; None while it can.
    """

    def __init__(self, matcher: LLMatcher, tokens: int, ends: Collection[int], param: str) -> None:
        self._matcher, self._ends = matcher, ends
        self.words, self.param = -(-tokens // 32), param
        self.fault: str | None = None

    def take(self, token: int) -> None:
        """The answer goes on by a token."""
        if self.fault is None:
            try:
                self._matcher.consume_token(token)
                self._look()
            except BaseException as error:  # a panic of the library's is no Exception
                self.fault = str(error)

    def fill(self, bits: Tensor) -> None:
        """Set the bits [W] int32, on the CPU, of the tokens that may come next; after a fault those that end it."""
        if self.fault is None:
            try:
                self._matcher.unsafe_compute_mask_ptr(bits.data_ptr(), bits.numel() * bits.element_size())
                self._look()
                if self.fault is None and not bool(bits.any()):
                    self.fault = "no token of the model can come next"
            except BaseException as error:
                self.fault = str(error)
        if self.fault is not None:
            bits.zero_()
            for token in self._ends:
                bits.view(torch.uint8)[token // 8] |= 1 << token % 8

    def _look(self) -> None:
        if self._matcher.is_error():
            self.fault = self._matcher.get_error()
