"""Attacks on class labels: held-back pictures that neither trained nor calibrated the classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attacks.label_features import BOTH_QUERIES, LabelFeatures
from benchmarks.attacks.sources import Ladder, Source
from policies.attacks.answers import (
    accuracy,
    best_combination,
    disclosed,
    label_and_score,
    own_label,
    tie_broken,
    votes,
    won_back,
)
from policies.attacks.corrector import Corrector
from policies.attacks.learners import Learner, linear

LOWEST_LEVEL = 0.2
"""How far below its own level a coalition's lowest member is; the others are evenly spread between."""
MANY = 3000
ACCOUNTS, REFITS = 20, 5


@dataclass(frozen=True)
class LabelAttack:
    """One source of noise at one level, under attack. Every attack returns the accuracy that it reaches.

    Args:
        head: features [N, H] to clean logits [N, K].
        level_worth: accuracy of the level's answers where the source has none of its own: clean answers.
    """

    source: Source
    level: float
    data: LabelFeatures
    head: Callable[[Tensor], Tensor]
    classes: int
    level_worth: float | None = None

    def ask(self, features: Tensor, level: float | None = None, account: int = 0) -> Tensor:
        """Modulated logits [..., K] to features [..., H]."""
        rows = features.flatten(0, -2)
        answers = self.source(rows, self.head(rows), level or self.level, account)
        return answers.reshape(*features.shape[:-1], -1)

    @cached_property
    def judged(self) -> Tensor:
        """Answers [1000, 100, K] to the usual near-duplicates of the judged pictures."""
        return self.ask(self.data.judged)

    @cached_property
    def examples(self) -> Tensor:
        """Answers [6000, K] to the labelled pictures."""
        return self.ask(self.data.examples)

    def clean(self) -> float:
        """What the unmodulated model is worth."""
        return accuracy(self.head(self.data.judged[:, 0]), self.data.truth)

    def single(self) -> float:
        """What the level is worth: one answer each."""
        return self.level_worth or accuracy(self.judged[:, 0], self.data.truth)

    def vote(self, answers: Tensor) -> float:
        """Most frequent label of answers [N, Q, K]."""
        labels = answers.argmax(dim=2)
        return accuracy(tie_broken(votes(labels, self.classes), labels[:, 0]), self.data.truth)

    def mean_score(self, answers: Tensor) -> float:
        """Highest sum of scores, one label and two digits each."""
        return accuracy(disclosed(answers, 1, 2).mean(dim=1), self.data.truth)

    def repeats(self, number: int = 100) -> float:
        """The same picture again and again."""
        return self.vote(torch.stack([self.ask(self.data.judged[:, 0]) for _ in range(number)], dim=1))

    def accounts(self, number: int = ACCOUNTS) -> float:
        """One query each from many accounts of the level."""
        one = self.data.judged[:, 0]
        return self.vote(torch.stack([self.ask(one, account=account) for account in range(number)], dim=1))

    def combined_levels(self) -> float:
        """All raw logits of three levels, in the best linear combination."""
        first = self.at_levels(self.data.examples)
        weights = best_combination(first, self.head(self.data.examples))
        levels = self.at_levels(self.data.judged[:, 0])
        mixed = sum(w * logits for w, logits in zip(weights, levels, strict=True))
        return accuracy(torch.as_tensor(mixed), self.data.truth)

    def levels_vote(self) -> float:
        """One label of each of three levels; that of the highest decides between equals."""
        return self.vote(torch.stack(self.at_levels(self.data.judged[:, 0]), dim=1))

    def levels_corrector(self, sees: Callable[[Tensor], Tensor], number: int) -> float:
        """A corrector fitted on 3,000 labelled pictures, on what one's own and so many lower levels show."""
        known, judged = (self.at_levels(rows, number) for rows in (self.data.examples[:MANY], self.data.judged[:, 0]))
        (seen, own), (shown, believed) = (
            (torch.cat([sees(logits) for logits in levels], dim=1), own_label(levels[0])) for levels in (known, judged)
        )
        fitted = Corrector(seen, own, self.data.example_truth[:MANY])
        return accuracy(fitted(shown, believed), self.data.truth)

    def ids(self) -> float:
        """The same weights served in three dtypes, asked once each."""
        one, dtypes = self.data.judged[:, 0], (torch.float32, torch.bfloat16, torch.float16)
        answers = [self.source(rows, self.head(rows), self.level) for rows in (one.to(t).float() for t in dtypes)]
        return self.vote(torch.stack(answers, dim=1))

    def gold(self, number: int) -> float:
        """An account of level 1.0 answers some pictures once; a corrector of the level's labels learns from those."""
        known = self.examples[:number]
        fitted = Corrector(own_label(known), own_label(known), self.head(self.data.examples[:number]).argmax(dim=1))
        one = own_label(self.judged[:, 0])
        return accuracy(fitted(one, one), self.data.truth)

    def at_levels(self, features: Tensor, number: int = 2) -> list[Tensor]:
        """Modulated logits [N, K] to features [N, H] at the level and at so many lower ones, evenly spread."""
        step = LOWEST_LEVEL / number
        return [self.ask(features, self.level - step * lower) for lower in range(number + 1)]

    def refits(self, number: int = REFITS) -> float:
        """The level after each of many refits, each on another half of the sample."""
        assert isinstance(self.source, Ladder)
        source, rows = self.source, self.data.judged[:, 0]
        phi, logits, answers = source.ladder.phi(rows), self.head(rows), []
        for turn in range(number):
            half = torch.randperm(len(source.sample.logits), generator=torch.Generator().manual_seed(turn))
            part = source.sample.part(half[: len(half) // 2])
            refit = source.field.fit(source.number, part, source.calibration, tolerance=0.01)
            answers.append(source.at(phi, logits, refit.position(self.level)))
        return self.vote(torch.stack(answers, dim=1))

    def corrector(self, sees: Callable[[Tensor], Tensor], learner: Learner = linear) -> float:
        """A corrector fitted on 6,000 labelled pictures, on what `sees` makes of modulated logits [N, K]."""
        fitted = Corrector(sees(self.examples), own_label(self.examples), self.data.example_truth, learner)
        one = self.judged[:, 0]
        return accuracy(fitted(sees(one), own_label(one)), self.data.truth)

    def both(self, digits: int = 0, queries: int = BOTH_QUERIES) -> float:
        """20 usual queries each, on 600 labelled pictures and on the judged; a corrector of what they show."""
        examples = self.ask(self.data.both[:, :queries])
        truth = self.data.both_truth
        (seen, share), (judged, judged_share) = (
            self._pooled(answers, digits) for answers in (examples, self.judged[:, :queries])
        )
        return accuracy(Corrector(seen, share, truth)(judged, judged_share), self.data.truth)

    def both_by_query(self, digits: int = 0, queries: int = BOTH_QUERIES) -> float:
        """As `both`, but each answer is corrected by itself and the corrected scores are added."""
        examples = self.ask(self.data.both[:, :queries])
        truth = self.data.both_truth.repeat_interleave(queries)
        rows, judged = examples.flatten(0, 1), self.judged[:, :queries].flatten(0, 1)
        fitted = Corrector(label_and_score(rows, digits), own_label(rows), truth)
        scores = fitted(label_and_score(judged, digits), own_label(judged)).log_softmax(dim=1)
        return accuracy(scores.reshape(len(self.judged), queries, -1).mean(dim=1), self.data.truth)

    def share(self, reached: float) -> float:
        """Accuracy as a share of the level's gap."""
        return won_back(reached, self.single(), self.clean())

    def _pooled(self, answers: Tensor, digits: int) -> tuple[Tensor, Tensor]:
        """What many answers [N, Q, K] show together: shares of votes, mean scores by label, own label; and shares."""
        share = votes(answers.argmax(dim=2), self.classes)
        scores = [disclosed(answers, 1, digits).mean(dim=1)] if digits else []
        return torch.cat([share, *scores, own_label(answers[:, 0])], dim=1), share


def top_two(logits: Tensor) -> Tensor:
    """What sweeps of focus can tell: they move the two highest logits only, so label, score, runner-up and margin."""
    top, index = logits.topk(2, dim=1)
    margin = ((top[:, 0] - top[:, 1]) * 100).round() / 100
    second = F.one_hot(index[:, 1], logits.shape[1]).float()
    first = F.one_hot(index[:, 0], logits.shape[1]).float()
    return torch.cat([label_and_score(logits), second, second * margin[:, None], first * margin[:, None]], dim=1)
