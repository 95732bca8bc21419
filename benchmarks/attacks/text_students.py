"""Students of a text model: trained on its answers to other steps, and asked for the token of a step alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.attacks.learners import neighbours

Scorer = Callable[[Tensor], Tensor]
"""Inputs [M, F] to scores [M, K]."""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
WAVES = 400
HELD_OUT = 5
"""Every fifth example chooses what is left open."""


def nearest(x: Tensor, y: Tensor, classes: int) -> Scorer:
    """The shares of each answer among the nearest examples: kNN-LM (Khandelwal 2020).

    Args:
        x: [N, F] float32 what the encoder makes of each example.
        y: [N] int64 answers.
    """
    used, column = y.unique(return_inverse=True)
    fitted = neighbours(x, column, len(used))
    return lambda seen: torch.zeros(len(seen), classes).index_copy_(1, used, fitted(seen).exp())


def linear(x: Tensor, y: Tensor, classes: int) -> Scorer:
    """Ridge regression to one-hot answers, over the inputs and 400 random Fourier features of them (Rahimi 2007): to
    thousands of tokens a softmax regression would take minutes.

    Args:
        x: [N, F] float32.
        y: [N] int64.
    """
    mean, spread = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(x.shape[1], WAVES, generator=generator) / x.shape[1] ** 0.5
    phases = torch.rand(WAVES, generator=generator) * 2.0 * torch.pi

    def design(seen: Tensor) -> Tensor:
        scaled = (seen - mean) / spread
        return torch.cat([scaled / scaled.shape[1] ** 0.5, (scaled @ waves + phases).cos() / WAVES**0.5], dim=1)

    whole, held = design(x), torch.arange(len(x)) % HELD_OUT == 0
    used, column = y.unique(return_inverse=True)
    targets = F.one_hot(column, len(used)).float()
    part = _Ridge(whole[~held], targets[~held])
    agreed = [float(((whole[held] @ part.weights(p)).argmax(dim=1) == column[held]).float().mean()) for p in PENALTIES]
    weights = _Ridge(whole, targets).weights(PENALTIES[agreed.index(max(agreed))])
    return lambda seen: torch.zeros(len(seen), classes).index_copy_(1, used, design(seen) @ weights)


class _Ridge:
    """Least squares at several penalties, decomposed once."""

    def __init__(self, x: Tensor, targets: Tensor) -> None:
        self._values, self._vectors = torch.linalg.eigh(x.T @ x)
        self._aims = self._vectors.T @ (x.T @ targets)

    def weights(self, penalty: float) -> Tensor:
        """[F, K], the penalty in shares of the mean direction."""
        return self._vectors @ (self._aims / (self._values + penalty * self._values.mean())[:, None])


class _Small(nn.Module):
    """Two layers of attention over the tokens before a step, from scratch."""

    def __init__(self, tokens: int, answers: int, length: int, width: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, width), nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.answer = nn.Linear(width, answers)

    def forward(self, context: Tensor) -> Tensor:
        """Tokens [N, L] before steps to scores [N, answers]."""
        scores: Tensor = self.answer(self.layers(self.tokens(context) + self.places)[:, -1])
        return scores


def small_model(x: Tensor, y: Tensor, classes: int, passes: int = 5) -> Scorer:
    """A small transformer from scratch.

    Args:
        x: [N, L] int64 the tokens before each example.
        y: [N] int64.
    """
    known, (used, column) = x.unique(), y.unique(return_inverse=True)
    place = torch.zeros(classes, dtype=torch.long).scatter_(0, known, torch.arange(1, len(known) + 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _Small(len(known) + 1, len(used), x.shape[1])
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
        for _ in range(passes):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(place[x[rows]]), column[rows], label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    model.eval()

    @torch.no_grad()
    def score(context: Tensor) -> Tensor:
        return torch.zeros(len(context), classes).index_copy_(1, used, model(place[context]).softmax(dim=1))

    return score
