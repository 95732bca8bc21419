"""One running sequence of a step, and what is noted of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from deployments.engines.text.grammars.matcher import Matcher
from deployments.engines.text.sampling import SamplingParams
from policies.head.slots import Setting


@dataclass(frozen=True)
class LogprobRecord:
    """Log-probabilities of one token, of the modulated logits.

    Attributes:
        chosen: scalar, the token's own.
        values: [k] of the most likely tokens, falling.
        tokens: [k] int64 their ids.
    """

    chosen: Tensor
    values: Tensor
    tokens: Tensor

    @classmethod
    def of_rows(cls, logits: Tensor, tokens: Tensor, most: int) -> list[LogprobRecord]:
        """One a row, with so many of the likeliest: logits [N, V] float32 and the tokens [N] int64 drawn of them."""
        logprobs = logits.log_softmax(dim=1)
        chosen = logprobs.gather(1, tokens[:, None])[:, 0]
        top = logprobs.topk(most, dim=1)
        return [cls(*row) for row in zip(chosen, top.values, top.indices, strict=True)]


@dataclass(eq=False)
class Seat:
    """One running sequence.

    Attributes:
        key: of its draws, from `seed_key`.
        prompt: its tokens before the answer.
        held: what its setting needs, from `Head.prepare`: while it waits for its turn others do not displace it.
        records: one for each drawn token, where the parameters ask for log-probabilities.
        read: of the tokens of the prompt but its first, where the parameters ask for theirs; in order.
        features: [H] inputs of the final layer, one for each drawn token, where a list is given: what calibrates.
        flow: whose it is, for the live rows.
        matcher: keeps it to its grammar, where it has one.
        answered: tokens that it has drawn, where its rows are to be written anew.
        source: a hash of the prompt, for the audit and the live rows.
    """

    setting: Setting
    params: SamplingParams
    key: int
    prompt: list[int]
    held: list[Future[Tensor]] = field(default_factory=list)
    records: list[LogprobRecord] = field(default_factory=list)
    read: list[LogprobRecord] = field(default_factory=list)
    features: list[Tensor] | None = None
    flow: str = ""
    matcher: Matcher | None = None
    answered: list[int] = field(default_factory=list)

    def take_back(self, answer: Sequence[int]) -> None:
        """It has drawn these tokens and no more: what was noted of others is dropped."""
        self.answered = list(answer)
        del self.records[len(answer) :]
        if self.features is not None:
            del self.features[len(answer) :]

    @cached_property
    def source(self) -> int:
        return hash(tuple(self.prompt))

    @property
    def level(self) -> int | None:
        """In hundredths; None of what calibrates, which nobody was sold."""
        return round(self.setting.level * 100) if self.setting.position is None else None
