"""A corrector: labels of the attacker's own, and what a level answers, to better answers."""

from __future__ import annotations

from torch import Tensor

from policies.attacks.learners import Learner, linear

BELIEF = 4.0
"""Log-odds with which answers are believed before anything is learned: with few labels none are thrown away."""


class Corrector:
    """A learner from what answers show to the true class, starting from the answers themselves.

    Args:
        seen: [N, F] what is known of each example: what its answer shows, and if the attacker likes the input itself.
        answers: [N, K] one-hot labels or shares of votes, what is believed without a corrector.
        truth: [N] int64.
        learner: how it is fitted.
    """

    def __init__(self, seen: Tensor, answers: Tensor, truth: Tensor, learner: Learner = linear) -> None:
        self._score = learner(seen, truth, answers.shape[1], BELIEF * answers)

    def __call__(self, seen: Tensor, answers: Tensor) -> Tensor:
        """Scores [M, K] of answers to other inputs."""
        return self._score(seen, BELIEF * answers)
