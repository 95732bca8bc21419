"""How every running sequence draws its tokens: its parameters and its penalties as rows of tables on the device."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.engines.text.sampling import SamplingParams, gumbel, keep_min_p, keep_top_k, keep_top_p, step_keys


@dataclass(frozen=True)
class DrawPlan:
    """What the running sequences need of a step, known when their set changes, so that no step asks the device.

    Attributes:
        random: whether any has a temperature above 0.
        top_k: the largest k; 0 where none has one.
        top_p: whether any has a nucleus.
        min_p: whether any has a least probability.
        adjusts: whether any has a penalty or a bias.
        repeats: whether any has a repetition penalty.
        least: whether any has a least number of tokens.
        logprobs: most likely tokens to tell beside the chosen one; None where nobody asked.
    """

    random: bool = False
    top_k: int = 0
    top_p: bool = False
    min_p: bool = False
    adjusts: bool = False
    repeats: bool = False
    least: bool = False
    logprobs: int | None = None

    @classmethod
    def of(cls, params: Mapping[int, SamplingParams]) -> DrawPlan:
        """The plan for sequences, by seat."""
        random = [p for p in params.values() if p.random]
        wanted = [p.logprobs for p in params.values() if p.logprobs is not None]
        return cls(
            random=bool(random),
            top_k=max((p.top_k for p in random), default=0),
            top_p=any(p.top_p < 1.0 for p in random),
            min_p=any(p.min_p > 0.0 for p in random),
            adjusts=any(p.adjusts for p in params.values()),
            repeats=any(p.repeats for p in params.values()),
            least=any(p.min_tokens for p in params.values()),
            logprobs=max(wanted, default=None),
        )


class DrawTables:
    """One row a seat, and one more for rows that nobody looks at, which stay greedy.

    Args:
        seats: S.
        vocabulary: V.
        device: where the logits are.
        ends: tokens by which the model ends its answers.
    """

    def __init__(self, seats: int, vocabulary: int, device: torch.device, ends: Collection[int] = ()) -> None:
        self._rows, self._vocabulary, self._device = seats + 1, vocabulary, device
        self._temperature = torch.ones(self._rows, device=device)
        self._random = torch.zeros(self._rows, device=device)
        self._top_p = torch.ones(self._rows, device=device)
        self._top_k = torch.zeros(self._rows, dtype=torch.int64, device=device)
        self._min_p = torch.zeros(self._rows, device=device)
        self._seed = torch.zeros(self._rows, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(self._rows, dtype=torch.int64, device=device)
        self._frequency = torch.zeros(self._rows, device=device)
        self._presence = torch.zeros(self._rows, device=device)
        self._repetition = torch.ones(self._rows, device=device)
        self._least = torch.zeros(self._rows, dtype=torch.int64, device=device)
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64, device=device)
        # A row of V each, so only once somebody asks for a penalty or a bias.
        self._adjustment: Tensor | None = None
        self._seen: Tensor | None = None
        self._read: Tensor | None = None

    def write(
        self, seat: int, params: SamplingParams, key: int, prompt: Sequence[int] = (), answer: Sequence[int] = ()
    ) -> None:
        """Give a seat to a sequence, drawing with `key` from `seed_key`; `answer` is what it has drawn already."""
        random = params.random
        self._temperature[seat] = params.temperature if random else 1.0
        self._random[seat] = float(random)
        self._top_p[seat] = params.top_p if random else 1.0
        self._top_k[seat] = params.top_k if random else 0
        self._min_p[seat] = params.min_p if random else 0.0
        self._seed[seat], self._drawn[seat] = key, len(answer)
        self._least[seat] = params.min_tokens
        self._frequency[seat], self._presence[seat] = params.frequency_penalty, params.presence_penalty
        if self._adjustment is None and params.adjusts:
            self._adjustment = torch.zeros(self._rows, self._vocabulary, device=self._device)
            self._seen = torch.zeros(self._rows, self._vocabulary, dtype=torch.bool, device=self._device)
        if self._adjustment is not None and self._seen is not None:
            self._adjustment[seat], self._seen[seat] = 0.0, False
            for token, bias in params.logit_bias:
                self._adjustment[seat, token] = bias
            for token in answer:
                fresh = not self._seen[seat, token]
                self._adjustment[seat, token] -= params.frequency_penalty + params.presence_penalty * fresh
                self._seen[seat, token] = True
        self._repetition[seat] = params.repetition_penalty
        if self._read is None and params.repeats:
            self._read = torch.zeros(self._rows, self._vocabulary, dtype=torch.bool, device=self._device)
        if self._read is not None:
            self._read[seat] = False
            self._read[seat, torch.tensor([*prompt, *answer], dtype=torch.int64, device=self._device)] = True

    def scores(self, logits: Tensor, slots: Tensor, plan: DrawPlan) -> Tensor:
        """Scores [N, V] whose argmax is each row's next token; rows of greedy seats are their logits.

        Args:
            logits: [N, V] float32, modulated.
            slots: [N] int64, each row's seat.
        """
        scores = self._adjusted(logits, slots, plan)
        if not plan.random:
            return scores
        scores = scores / self._temperature[slots][:, None]
        if plan.min_p:
            scores = keep_min_p(scores, self._min_p[slots])
        if plan.top_k:
            scores = keep_top_k(scores, self._top_k[slots], plan.top_k)
        if plan.top_p:
            scores = keep_top_p(scores, self._top_p[slots])
        noise = gumbel(step_keys(self._seed[slots], self._drawn[slots]), scores.shape[1])
        return noise.mul_(self._random[slots][:, None]).add_(scores)

    def _adjusted(self, logits: Tensor, slots: Tensor, plan: DrawPlan) -> Tensor:
        """Logits after penalties and biases; the very same where nobody has any."""
        scores = logits
        if plan.repeats and self._read is not None:
            penalty = self._repetition[slots][:, None]
            scores = torch.where(self._read[slots], torch.where(scores > 0, scores / penalty, scores * penalty), scores)
        if plan.adjusts and self._adjustment is not None:
            scores = scores + self._adjustment[slots]
        if plan.least:
            early = (self._drawn[slots] < self._least[slots])[:, None]
            scores = scores.index_fill(1, self._ends, -torch.inf).where(early, scores)
        return scores

    def drawn(self, tokens: Tensor, slots: Tensor, plan: DrawPlan) -> None:
        """Count the tokens [N] int64 that a step chose."""
        self._drawn[slots] += 1
        if plan.adjusts and self._adjustment is not None and self._seen is not None:
            fresh = ~self._seen[slots, tokens]
            self._adjustment[slots, tokens] -= self._frequency[slots] + self._presence[slots] * fresh
            self._seen[slots, tokens] = True
        if plan.repeats and self._read is not None:
            self._read[slots, tokens] = True
