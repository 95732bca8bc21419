"""What an attacker fits: softmax regression, random features, a small network and nearest neighbours.

A *student* is fitted on a level's answers in place of labels; a *corrector* on labels of the attacker's own, starting
from what the level answered (`prior`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
HELD_OUT = 5
"""Every fifth example chooses the penalty, the number of neighbours, or when to stop."""
NEIGHBOURS = (5, 10, 30, 100)
RANDOM_FEATURES = 600
HIDDEN = 256
EPOCHS = 60
STIFF = 10.0
"""So stiff a regression is next to the nearest class mean: from 3 to 100 a student wins the same."""
_BATCH = 256


class Scorer(Protocol):
    """A fitted learner."""

    def __call__(self, x: Tensor, prior: Tensor | None = None) -> Tensor:
        """Inputs [M, F] and what was believed of them [M, K], if it was fitted with that, to log-scores [M, K]."""


Learner = Callable[..., Scorer]
"""Inputs [N, F] float32, classes [N] int64, K, and optionally a prior [N, K] of log-scores, to a `Scorer`."""


def linear(x: Tensor, y: Tensor, classes: int, prior: Tensor | None = None) -> Scorer:
    """Softmax regression with the penalty that does best on a fifth of the examples."""
    standard = _Standard(x)
    design, held = standard(x), torch.arange(len(x)) % HELD_OUT == 0
    start = torch.zeros(len(x), classes) if prior is None else prior
    losses, weights = [], torch.zeros(design.shape[1], classes)
    for penalty in sorted(PENALTIES, reverse=True):  # from stiff to loose, each from the one before
        weights = _regression(design[~held], y[~held], start[~held], penalty, weights)
        losses.append(float(F.cross_entropy(design[held] @ weights + start[held], y[held])))
    best = sorted(PENALTIES, reverse=True)[losses.index(min(losses))]
    return stiff(best)(x, y, classes, prior)


def stiff(penalty: float) -> Learner:
    """Softmax regression with a penalty that is given, not chosen on held-out answers: those reward a student for
    learning a level's systematic mistakes, which a stiffer one does not follow."""

    def learner(x: Tensor, y: Tensor, classes: int, prior: Tensor | None = None) -> Scorer:
        standard = _Standard(x)
        design, start = standard(x), torch.zeros(len(x), classes) if prior is None else prior
        fitted = _regression(design, y, start, penalty, torch.zeros(design.shape[1], classes))
        return lambda x, prior=None: standard(x) @ fitted + (0.0 if prior is None else prior)

    return learner


def random_features(x: Tensor, y: Tensor, classes: int, prior: Tensor | None = None) -> Scorer:
    """Softmax regression on the inputs and 600 random Fourier features of them (Rahimi and Recht, NIPS 2007)."""
    standard, generator = _Standard(x), torch.Generator().manual_seed(0)
    sample = standard(x)[:: max(1, len(x) // 500), :-1]
    scale = torch.cdist(sample, sample).median().clamp(min=1e-6)
    w = torch.randn(x.shape[1], RANDOM_FEATURES, generator=generator) / scale
    b = torch.rand(RANDOM_FEATURES, generator=generator) * 2 * torch.pi

    def lift(x: Tensor) -> Tensor:
        plain = standard(x)[:, :-1]
        return torch.cat([plain, (plain @ w + b).cos()], dim=1)

    fitted = linear(lift(x), y, classes, prior)
    return lambda x, prior=None: fitted(lift(x), prior)


def network(x: Tensor, y: Tensor, classes: int, prior: Tensor | None = None) -> Scorer:
    """A layer of 256 hidden units, stopped where a fifth of the examples is met best."""
    standard, held = _Standard(x), torch.arange(len(x)) % HELD_OUT == 0
    design = standard(x)
    start = torch.zeros(len(x), classes) if prior is None else prior
    with torch.random.fork_rng():
        torch.manual_seed(0)
        last = torch.nn.Linear(HIDDEN, classes)
        torch.nn.init.zeros_(last.weight)
        hidden = torch.nn.Linear(design.shape[1], HIDDEN)
        model = torch.nn.Sequential(hidden, torch.nn.GELU(), torch.nn.Dropout(0.3), last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
        rows, best, kept = torch.nonzero(~held)[:, 0], float("inf"), model.state_dict()
        for _ in range(EPOCHS):
            model.train()
            for part in torch.split(rows[torch.randperm(len(rows))], _BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(design[part]) + start[part], y[part]).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                loss = float(F.cross_entropy(model(design[held]) + start[held], y[held]))
            if loss < best:
                best, kept = loss, {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(kept)

    @torch.no_grad()
    def score(x: Tensor, prior: Tensor | None = None) -> Tensor:
        logits: Tensor = model(standard(x))
        return logits if prior is None else logits + prior

    return score


def neighbours(x: Tensor, y: Tensor, classes: int, prior: Tensor | None = None) -> Scorer:
    """Votes of the nearest by cosine, of as many as do best on the examples themselves, each left out in turn."""
    centre = x.mean(dim=0)
    known = F.normalize(x - centre)

    def shares(x: Tensor, count: int, skip: int) -> Tensor:
        parts = []
        for rows in torch.split(F.normalize(x - centre), 1024):
            value, index = (rows @ known.T).topk(count + skip, dim=1)
            weight = value[:, skip:].clamp(min=0.0) + 1e-3
            share = weight / weight.sum(dim=1, keepdim=True)
            parts.append(torch.zeros(len(rows), classes).scatter_add_(1, y[index[:, skip:]], share))
        return torch.cat(parts)

    asked = slice(None, None, max(1, len(x) // 2000))
    counts = [count for count in NEIGHBOURS if count < len(x) // 2] or [1]
    right = [float((shares(x[asked], count, 1).argmax(dim=1) == y[asked]).float().mean()) for count in counts]
    count = counts[right.index(max(right))]
    return lambda x, prior=None: (shares(x, count, 0) + 1e-3).log() + (0.0 if prior is None else prior)


LEARNERS: dict[str, Learner] = {
    "linear": linear,
    "stiff": stiff(STIFF),
    "random features": random_features,
    "network": network,
    "nearest": neighbours,
}


class _Standard:
    """Inputs [N, F] to [N, F + 1]: centred, of unit spread as in the examples, and a column of ones."""

    def __init__(self, x: Tensor) -> None:
        self._mean, self._spread = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)

    def __call__(self, x: Tensor) -> Tensor:
        return F.pad((x - self._mean) / self._spread, (0, 1), value=1.0)


def _regression(x: Tensor, y: Tensor, start: Tensor, penalty: float, begin: Tensor) -> Tensor:
    weights = begin.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weights + start, y) + penalty * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()
