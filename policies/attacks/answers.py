"""What answers show, and what an attacker makes of several: votes, means of scores, combinations of levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def won_back(accuracy: float, level: float, clean: float) -> float:
    """Share of a level's gap, clean accuracy less the level's, that an attack wins back."""
    return (accuracy - level) / (clean - level)


def accuracy(scores: Tensor, truth: Tensor) -> float:
    """Share of rows whose highest score [N, K] is the true class [N]; the first of equals counts."""
    return float((scores.argmax(dim=1) == truth).float().mean())


def votes(answers: Tensor, classes: int, weights: Tensor | None = None) -> Tensor:
    """Answers [N, Q] int64, each counted as one or by its weight [N, Q], to the mean over the queries, [N, K]."""
    given = torch.ones(answers.shape) if weights is None else weights.float()
    return torch.zeros(len(answers), classes).scatter_add_(1, answers, given) / answers.shape[1]


def tie_broken(counts: Tensor, first: Tensor) -> Tensor:
    """Votes [N, K] in which the answer [N] to the picture itself decides between equals."""
    return counts + 1e-4 * F.one_hot(first, counts.shape[1])


def disclosed(logits: Tensor, labels: int, digits: int | None) -> Tensor:
    """Logits [..., K] to the probabilities that an answer shows: of its highest labels, rounded; else 0."""
    shown = logits.softmax(dim=-1)
    top, index = shown.topk(labels, dim=-1)
    if digits is not None:
        top = (top * 10**digits).round() / 10**digits
    return torch.zeros_like(shown).scatter_(-1, index, top)


def own_label(logits: Tensor) -> Tensor:
    """What a label alone shows: [N, K], one-hot."""
    return F.one_hot(logits.argmax(dim=1), logits.shape[1]).float()


def label_and_score(logits: Tensor, digits: int = 2) -> Tensor:
    """What a corrector sees of one label and its score: [N, K] to [N, 4 K], a curve in the score for each label.

    With 0 digits there is no score: `own_label`.
    """
    if not digits:
        return own_label(logits)
    score, label = logits.softmax(dim=1).max(dim=1)
    score = (score * 10**digits).round() / 10**digits
    odds = torch.logit(score.clamp(0.5 * 10**-digits, 1 - 0.5 * 10**-digits)) / 4
    curve = torch.stack([torch.ones_like(score), score, score**2, odds], dim=1)
    return (F.one_hot(label, logits.shape[1])[:, :, None] * curve[:, None]).flatten(1)


def temperature_for(logits: Tensor, level: float) -> float:
    """The temperature at which one answer sampled from logits [N, K] is the clean one as often as a level says."""
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = (low * high) ** 0.5
        agreed = float((logits / middle).softmax(dim=1).max(dim=1).values.mean())
        low, high = (middle, high) if agreed > level else (low, middle)
    return low


def sampled(logits: Tensor, temperature: float, draws: int, generator: torch.Generator) -> Tensor:
    """Answers [N, draws] int64 sampled from logits [N, K]: what a user would think of instead of noise."""
    return (logits / temperature).softmax(dim=1).multinomial(draws, replacement=True, generator=generator)


def best_combination(levels: Sequence[Tensor], clean: Tensor) -> Tensor:
    """The weights [L] with which logits at several levels, each [N, K], come nearest to the clean ones [N, K].

    Least squares over centred logits; fitting on the clean logits themselves is more than an attacker can do.
    """
    columns = torch.stack([_centred(level).flatten() for level in levels], dim=1).double()
    solved: Tensor = torch.linalg.lstsq(columns, _centred(clean).flatten()[:, None].double()).solution
    return solved[:, 0].float()


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=1, keepdim=True)
