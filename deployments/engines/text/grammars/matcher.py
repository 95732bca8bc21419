"""One answer's place in its grammar: which tokens may come next. It never raises; a fault ends its answer alone."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

import torch
from llguidance import LLMatcher
from torch import Tensor

_ALLOWED_S, _EACH_S = 0.25, 0.01
TOO_SLOW = "its masks take more of each step than a grammar may; make it simpler"


@dataclass
class Spent:
    """What one grammar has taken of the engine's steps, over all its answers.

    Attributes:
        seconds: of a processor.
        steps: how many.
    """

    seconds: float = 0.0
    steps: int = 0

    def take(self, seconds: float) -> None:
        """One step more."""
        self.seconds, self.steps = self.seconds + seconds, self.steps + 1

    @property
    def too_much(self) -> bool:
        """Whether it holds up the others of its steps: beyond some at once, more than a mask may take in the mean."""
        return self.seconds > _ALLOWED_S + _EACH_S * self.steps


class Matcher:
    """Where an answer is in its grammar.

    Args:
        matcher: the library's own, of no other answer.
        tokens: N, that its tokenizer has.
        ends: those that end an answer.
        param: the request's field that the grammar came in.
        spent: of its grammar, whose other answers tell it too.

    Attributes:
        words: of 32 bits, of a mask over all tokens.
        fault: why the grammar cannot be followed any further; None while it can.
    """

    def __init__(self, matcher: LLMatcher, tokens: int, ends: Collection[int], param: str, spent: Spent) -> None:
        self._matcher, self._ends, self._spent = matcher, ends, spent
        self.words, self.param = -(-tokens // 32), param
        self.fault: str | None = None

    def take(self, token: int) -> None:
        """The answer goes on by a token."""
        if self.fault is None:
            began = time.thread_time()
            try:
                self._matcher.consume_token(token)
                self._look()
            except BaseException as error:  # a panic of the library's is no Exception
                self.fault = str(error)
            self._spent.seconds += time.thread_time() - began

    def fill(self, bits: Tensor) -> None:
        """Set the bits [W] int32, on the CPU, of the tokens that may come next; after a fault those that end it."""
        if self.fault is None and self._spent.too_much:
            self.fault = TOO_SLOW
        if self.fault is None:
            began = time.thread_time()
            try:
                self._matcher.unsafe_compute_mask_ptr(bits.data_ptr(), bits.numel() * bits.element_size())
                self._look()
                if self.fault is None and not bool(bits.any()):
                    self.fault = "no token of the model can come next"
            except BaseException as error:
                self.fault = str(error)
            self._spent.take(time.thread_time() - began)
        if self.fault is not None:
            bits.zero_()
            for token in self._ends:
                bits.view(torch.uint8)[token // 8] |= 1 << token % 8

    def _look(self) -> None:
        if self._matcher.is_error():
            self.fault = self._matcher.get_error()
