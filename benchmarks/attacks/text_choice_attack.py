"""Attacks on one choice: other verbalizers, samples of one answer, drafts repaired and judged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.attacks.text_choices import VERBALIZERS, Choices
from benchmarks.attacks.text_correctors import ranker
from benchmarks.attacks.text_sources import Source
from policies.attacks.answers import votes

FORMS = len(VERBALIZERS)
SPELLINGS = (("positive", "Positive"), ("good", "Good", "GOOD"), ("yes", "Yes"), ("true", "True"))
SAMPLES, HEAT = 10, 0.7


class ChoiceAttack:
    """A source under attack; None: the clean model, which the same votes are taken from.

    Answers are 0 or 1, or -1 where the token is the beginning of neither word.
    """

    def __init__(self, source: Source | None, choices: Choices, level: float, seed: int = 0) -> None:
        self._choices, self._generator = choices, torch.Generator().manual_seed(seed)
        shape = choices.logits.shape
        self.logits = choices.logits
        if source is not None:
            noise = source(choices.features.flatten(0, 1), choices.index.flatten(0, 1), level)
            self.logits = choices.logits + noise.reshape(shape)

    @cached_property
    def answers(self) -> Tensor:
        """[V, N] of the forms, greedy."""
        return self._choices.meaning.gather(2, self.logits.argmax(dim=2, keepdim=True))[..., 0]

    def single(self) -> float:
        """Mean accuracy over verbalizers."""
        return float((self.answers[:FORMS] == self._choices.truth).float().mean())

    def agreement(self) -> float:
        """How often a form's token is its clean one."""
        return float((self.logits[:FORMS].argmax(dim=2) == 0).float().mean())

    def voted(self) -> float:
        """Majority over all verbalizers."""
        return self._accuracy(self._majority(self.answers[:FORMS].T))

    def spellings(self) -> float:
        """Majority over the spellings of one pair of words; mean over pairs."""
        names = list(VERBALIZERS)
        groups = [self.answers[[names.index(name) for name in group]].T for group in SPELLINGS]
        return sum(self._accuracy(self._majority(group)) for group in groups) / len(groups)

    def chosen(self) -> float:
        """The one form that is right most often on the labels of one half of the items, judged on the other."""
        right = (self.answers[:FORMS] == self._choices.truth).float()
        parts = [float(right[right[:, rows].mean(dim=1).argmax(), ~rows].mean()) for rows in self._halves()]
        return sum(parts) / 2

    def corrected(self, forms: int = FORMS) -> float:
        """A corrector of all forms' answers, fitted on the labels of one half of the items and judged on the other."""
        given = self.answers[:forms].T
        said = torch.stack([(given == k).float() for k in (0, 1)], dim=1)
        # For and against each class, and once more for the first alone: a form that favours one class is told by it.
        seen = torch.cat([said - said.flip(1), said * torch.tensor([1.0, -1.0])[None, :, None]], dim=2)
        right, scores = self._choices.truth, torch.zeros(len(given), 2)
        for rows in self._halves():
            scores[~rows] = ranker(seen[rows], right[rows])(seen[~rows])
        return self._accuracy(scores.argmax(dim=1))

    def sampled(self, forms: Sequence[int]) -> float:
        """Majority over ten samples at temperature 0.7 of some forms together."""
        given = [self._draws(form) for form in forms]
        return self._accuracy(self._majority(torch.cat(given, dim=1)))

    def sampled_alone(self) -> float:
        """The same of each verbalizer by itself; mean over them."""
        return sum(self.sampled([form]) for form in range(FORMS)) / FORMS

    def drafted(self) -> float:
        """Accuracy of the first verbalizer, whose answer is the draft."""
        return self._accuracy(self._filled(self.answers[0]))

    def repaired(self) -> float:
        """The draft of the first verbalizer shown again, to be corrected."""
        draft = self._filled(self.answers[0])
        return self._accuracy(self._filled(self.answers[FORMS : FORMS + 2].gather(0, draft[None])[0], draft))

    def judged(self) -> float:
        """Both drafts shown in either order, for the model to say which is better: its two votes, the draft between."""
        both = torch.cat([self.answers[FORMS + 2 :], self.answers[:1]]).T
        return self._accuracy(self._majority(both))

    def _halves(self) -> tuple[Tensor, Tensor]:
        """Each a mask [N]: whose labels are known, and once more the other way round."""
        half = torch.arange(len(self._choices.truth)) // 4 % 2 == 0
        return half, ~half

    def _draws(self, form: int) -> Tensor:
        shares = (self.logits[form] / HEAT).softmax(dim=1)
        drawn = shares.multinomial(SAMPLES, replacement=True, generator=self._generator)
        return self._choices.meaning[form].gather(1, drawn)

    def _majority(self, given: Tensor) -> Tensor:
        """Answers [N, Q] to the more frequent of 0 and 1; the first that is either decides between equals."""
        counts = votes(given + 1, 3)[:, 1:]
        first = (given >= 0).float().argmax(dim=1, keepdim=True)
        decided = given.gather(1, first)[:, 0].clamp(min=0)
        return (counts + 1e-4 * torch.nn.functional.one_hot(decided, 2)).argmax(dim=1)

    @staticmethod
    def _filled(given: Tensor, other: Tensor | None = None) -> Tensor:
        """Answers with 0, or another answer, where they are neither."""
        return torch.where(given < 0, torch.zeros_like(given) if other is None else other, given)

    def _accuracy(self, given: Tensor) -> float:
        return float((given == self._choices.truth).float().mean())
