"""A model's grammars: tried in a process of their own, built off the engine's thread, kept by what they say."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from deployments.contracts.grammar import Grammar, GrammarKind
from deployments.contracts.schemas import check_schema
from deployments.engines.text.grammars.library import grammar_of, limits
from deployments.engines.text.grammars.matcher import TOO_SLOW, Matcher, Spent
from deployments.engines.text.grammars.trials import Trials
from deployments.queues.fair_pool import FairPool
from policies.errors import InvalidRequest
from policies.terms import Share

KEPT = 64
"""Grammars that are kept, the longest unused going first."""
_WAITING = 64
"""Requests of one tenant whose grammars wait to be built."""
_SAID = 300
"""Characters of a fault that are told."""
_PLAIN = {"NoExtensionBias": "there is no text that fulfils it"}
"""What the library says of some faults is a name of its own."""


@dataclass(frozen=True)
class _Built:
    matcher: LLMatcher
    spent: Spent = field(default_factory=Spent)


class Grammars:
    """What grammars need of one model. Nothing is made of its tokenizer before the first.

    Args:
        model_id: for refusals.
        tokenizer: transformers' own, with a `tokenizers` backend.
        vocabulary: V, columns of the logits.
        ends: tokens that end an answer.
    """

    def __init__(self, model_id: str, tokenizer: Any, vocabulary: int, ends: Collection[int]) -> None:
        self._model_id, self._tokenizer = model_id, tokenizer
        self._vocabulary, self._ends = vocabulary, sorted(ends)
        self._pool: FairPool[Grammar, _Built | InvalidRequest] = FairPool(self._built, workers=1, queue_bound=_WAITING)
        self._trials = Trials()
        self._tokens: LLTokenizer | None = None
        self._kept: OrderedDict[tuple[GrammarKind, str], _Built | str] = OrderedDict()
        self._lock = threading.Lock()

    async def matcher(self, grammar: Grammar, share: Share) -> Matcher:
        """A matcher for one answer.

        Raises:
            InvalidRequest: the grammar is none, asks for what is not enforced, or is too complex; names its field.
            Unavailable: this tenant has many built already.
        """
        built = self._known(grammar) or await self._pool.submit(grammar, share)
        if isinstance(built, InvalidRequest):
            raise built
        assert self._tokens is not None  # it was built with them
        return Matcher(built.matcher.deep_copy(), self._tokens.vocab_size, self._ends, grammar.param, built.spent)

    def close(self) -> None:
        """End the thread and the process."""
        self._pool.close()
        self._trials.close()

    def _known(self, grammar: Grammar) -> _Built | InvalidRequest | None:
        with self._lock:
            kept = self._kept.get(key := (grammar.kind, grammar.text))
            if kept is None:
                return None
            self._kept.move_to_end(key)
            if isinstance(kept, _Built) and kept.spent.too_much:
                kept = self._kept[key] = TOO_SLOW
        return self._refused(grammar, kept) if isinstance(kept, str) else kept

    def _built(self, grammar: Grammar) -> _Built | InvalidRequest:
        """In the pool's thread: a grammar ready to be copied, or why there is none; both are kept."""
        if (known := self._known(grammar)) is not None:
            return known
        try:
            made: _Built | str = _Built(self._build(grammar.kind, grammar.text))
        except (ValueError, RecursionError) as error:
            made = str(error)
        with self._lock:
            self._kept[grammar.kind, grammar.text] = made
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return self._refused(grammar, made) if isinstance(made, str) else made

    def _build(self, kind: GrammarKind, text: str) -> LLMatcher:
        if kind is GrammarKind.SCHEMA:
            check_schema(text)
        if fault := self._trials.fault(kind, text):
            raise ValueError(fault)
        built = LLMatcher(self._its_tokens(), grammar_of(kind, text), log_level=0, limits=limits())
        if not built.is_error():
            built.compute_bitmask()  # so that no step does what a first mask takes
        if built.is_error():
            raise ValueError(_PLAIN.get(built.get_error(), built.get_error()))
        return built

    def _its_tokens(self) -> LLTokenizer:
        if self._tokens is None:
            backend = copy(self._tokenizer.backend_tokenizer)
            backend.no_padding()
            backend.no_truncation()
            most = max(self._vocabulary, backend.get_vocab_size(with_added_tokens=True))
            if not self._ends:
                raise ValueError(f"{self._model_id} has no token that ends an answer, so it cannot keep to a form")
            try:
                self._tokens = LLTokenizer(backend.to_str(), n_vocab=most, eos_token=self._ends)
            except Exception as error:  # whatever the library says of a tokenizer that it cannot read
                raise ValueError(f"the tokenizer of {self._model_id} cannot be kept to a form: {error}") from error
        return self._tokens

    def _refused(self, grammar: Grammar, fault: str) -> InvalidRequest:
        said = " ".join(fault.replace("<non-verbose/>", "").split())[:_SAID]
        what = "schema" if grammar.kind is GrammarKind.SCHEMA else grammar.kind
        return InvalidRequest(f"Invalid {what} in {grammar.param}: {said}.", param=grammar.param, code="invalid_value")
