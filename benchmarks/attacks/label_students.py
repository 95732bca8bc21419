"""Students of class labels: networks fitted on a level's answers, with and without labels of the attacker's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.attacks.label_attack import LabelAttack
from policies.attacks.answers import accuracy, own_label, tie_broken, votes
from policies.attacks.corrector import BELIEF
from policies.attacks.learners import LEARNERS, Learner, linear, network

if TYPE_CHECKING:
    from benchmarks.attacks.clusters import Clusters

ANSWERS = (1000, 4000)
LABELLED = (600, 4000)
QUERIES = 20


@dataclass(frozen=True)
class Encoded:
    """Pictures as a student sees them.

    Attributes:
        known: [4000, F] pictures that the attacker asks about; the first are those that he has labels of.
        trained: [16000, F] more of them, which had trained the model.
        judged: [1000, F] pictures that neither trained nor calibrated it.
    """

    known: Tensor
    trained: Tensor
    judged: Tensor
    classes: int

    @cached_property
    def clusters(self) -> Clusters:
        """As many as there are classes."""
        from benchmarks.attacks.clusters import Clusters  # of the extra "bench"

        return Clusters(self.known, self.judged, self.classes)


class LabelStudents:
    """Students of one source at one level.

    Args:
        attack: the source under attack.
        encoders: by name, the frozen encoder that students stand on.
        alone: what an encoder and some labels are worth without any answer, from `worth_alone`.
    """

    def __init__(
        self, attack: LabelAttack, encoders: Mapping[str, Encoded], alone: Mapping[tuple[str, int], float]
    ) -> None:
        self._attack, self._encoders, self._alone = attack, encoders, alone
        self._known = attack.examples[: len(attack.data.thrice)].argmax(dim=1)

    def rows(self, large: bool) -> dict[str, Callable[[], float]]:
        """Attacks by name, each to the share of the gap that it wins; 0 is the better of a plain answer and what the
        attacker has without the model. `large`: those on 20,000 answers too."""
        rows: dict[str, Callable[[], float]] = {}
        for name in self._encoders:
            for number in ANSWERS:
                rows[f"student, {name}: {number:,} answers"] = lambda n=name, c=number: self.fitted(n, c)
            rows[f"student, {name}: 3 queries each of 4,000 pictures"] = lambda n=name: self.fitted(
                n, 4000, self._voted
            )
            if large:
                rows[f"student, {name}: 20,000 answers"] = lambda n=name: self.most(n)
            if find_spec("sklearn"):
                rows[f"clusters of {name}, each named by 4,000 answers"] = lambda n=name: self.clustered(n, self._known)
        for name in self._encoders:
            for labelled in LABELLED if (name, LABELLED[0]) in self._alone else ():
                rows[f"answer and {name}, {labelled:,} labelled"] = lambda n=name, c=labelled: self.assisted(n, c)
            if (name, LABELLED[0]) in self._alone:
                rows[f"20 queries, student and {name}, 600 labelled"] = lambda n=name: self.everything(n)
        return rows

    @property
    def _voted(self) -> Tensor:
        answers = self._attack.ask(self._attack.data.thrice).argmax(dim=2)
        return tie_broken(votes(answers, self._attack.classes), answers[:, 0]).argmax(dim=1)

    def fitted(self, name: str, number: int, answers: Tensor | None = None) -> float:
        """A student of answers [4000], or of one each; the strongest of the learners, chosen after the fact."""
        encoded, answers = self._encoders[name], self._known if answers is None else answers
        return max(
            self._share(learner(encoded.known[:number], answers[:number], self._attack.classes)(encoded.judged))
            for learner in LEARNERS.values()
        )

    def clustered(self, name: str, labels: Tensor) -> float:
        """As many clusters as classes, each named by answers or by labels."""
        return self._share(self._encoders[name].clusters.named(labels))

    def most(self, name: str) -> float:
        """A student of 20,000 answers."""
        encoded, more = self._encoders[name], self._attack.ask(self._attack.data.trained).argmax(dim=1)
        known, answers = torch.cat([encoded.known, encoded.trained]), torch.cat([self._known, more])
        learners: tuple[Learner, ...] = (linear, network)
        return max(self._share(learner(known, answers, self._attack.classes)(encoded.judged)) for learner in learners)

    def assisted(self, name: str, labelled: int) -> float:
        """A corrector that sees the picture besides the answer."""
        encoded, data, classes = self._encoders[name], self._attack.data, self._attack.classes
        known, judged = own_label(self._attack.examples[:labelled]), own_label(self._attack.judged[:, 0])
        scores = [
            learner(encoded.known[:labelled], data.example_truth[:labelled], classes, BELIEF * known)(
                encoded.judged, BELIEF * judged
            )
            for learner in (linear, network)
        ]
        return max(self._share(score, self._alone[name, labelled]) for score in scores)

    def everything(self, name: str) -> float:
        """20 queries each, a student of 4,000 answers, the picture, and 600 labels."""
        encoded, data, classes = self._encoders[name], self._attack.data, self._attack.classes
        student = linear(encoded.known, self._known, classes)

        def seen(pictures: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
            share = votes(answers, classes)
            return torch.cat([pictures, 3 * student(pictures).softmax(dim=1), 5 * share], dim=1), BELIEF * share

        count = len(data.both_truth)
        known, prior = seen(encoded.known[:count], self._attack.ask(data.both[:, :QUERIES]).argmax(dim=2))
        judged, believed = seen(encoded.judged, self._attack.judged[:, :QUERIES].argmax(dim=2))
        return self._share(linear(known, data.both_truth, classes, prior)(judged, believed), self._alone[name, count])

    def _share(self, scores: Tensor, alone: float = 0.0) -> float:
        plain = max(self._attack.single(), alone)
        return (accuracy(scores, self._attack.data.truth) - plain) / (self._attack.clean() - self._attack.single())


def worth_alone(encoders: Mapping[str, Encoded], attack: LabelAttack) -> dict[tuple[str, int], float]:
    """Accuracy of each encoder with some labels and no answer, the best of four learners."""
    data, classes = attack.data, attack.classes

    def reached(encoded: Encoded, labelled: int, learner: Learner) -> float:
        fitted = learner(encoded.known[:labelled], data.example_truth[:labelled], classes)
        return accuracy(fitted(encoded.judged), data.truth)

    return {
        (name, labelled): max(reached(encoded, labelled, learner) for learner in LEARNERS.values())
        for name, encoded in encoders.items()
        for labelled in LABELLED
    }
