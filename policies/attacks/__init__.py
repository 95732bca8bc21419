"""Attacks on a sold level, on tensors alone: what they win back of any model's answers is for its owner to measure."""

from policies.attacks.answers import accuracy, best_combination, disclosed, label_and_score, own_label, votes, won_back
from policies.attacks.corrector import Corrector
from policies.attacks.learners import LEARNERS, Learner, Scorer, stiff

__all__ = [
    "LEARNERS",
    "Corrector",
    "Learner",
    "Scorer",
    "accuracy",
    "best_combination",
    "disclosed",
    "label_and_score",
    "own_label",
    "stiff",
    "votes",
    "won_back",
]
