"""Correctors of tokens: which of the tokens that were answered is the clean one, and what full logits give away."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Ranker = Callable[[Tensor], Tensor]
"""What is known of candidates, [M, C, F], to their scores [M, C]."""
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
HELD_OUT = 5


def ranker(seen: Tensor, right: Tensor, hidden: int = 0) -> Ranker:
    """Conditional logit over candidates (McFadden 1974), with a hidden layer if asked.

    Args:
        seen: [N, C, F] float32.
        right: [N] int64 the place of the clean token; -1 where it is none of them: the step teaches nothing.
        hidden: units; 0 for none.
    """
    x, y = seen[right >= 0], right[right >= 0]
    mean, spread = x.flatten(0, 1).mean(dim=0), x.flatten(0, 1).std(dim=0).clamp(min=1e-6)
    width = x.shape[2]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1)] if hidden else [nn.Linear(width, 1)]
        model = nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.02 if hidden else 0.001)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(model((x - mean) / spread)[..., 0], y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    @torch.no_grad()
    def score(other: Tensor) -> Tensor:
        scores: Tensor = model((other - mean) / spread)[..., 0]
        return scores

    return score


class FullLogits:
    """What a client sees who may read every logit: each row's place in the span of the logits, H + D wide.

    Coordinates keep the distances between rows of logits, so they are what a decomposition of enough rows gives; a
    common constant is left out, since log-probabilities do not show it.

    Args:
        rows: [V, H] the final layer's rows, of which a client sees the span.
        gram: [H, H] of the centred rows, which is the same for all secrets.
        matrix: [D, V] C at the level.
    """

    def __init__(self, rows: Tensor, gram: Tensor, matrix: Tensor) -> None:
        self._rows, self._columns = rows - rows.mean(dim=0), (matrix - matrix.mean(dim=1, keepdim=True)).T.contiguous()
        cross = self._rows.T @ self._columns
        whole = torch.cat([torch.cat([gram, cross], 1), torch.cat([cross.T, self._columns.T @ self._columns], 1)])
        self._root = _root(whole)
        self._inverse = torch.linalg.inv(self._root)

    def places(self, features: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Where rows lie, [N, H + D], as they are answered and as they would be clean."""
        clean = torch.cat([features, torch.zeros_like(phi)], dim=1)
        return torch.cat([features, phi], dim=1) @ self._root.T, clean @ self._root.T

    def logits(self, places: Tensor, index: Tensor) -> Tensor:
        """Places [N, H + D] to the centred logits of contenders [N, C]."""
        inputs = places @ self._inverse.T
        h = self._rows.shape[1]
        parts = zip(inputs.split(256), index.split(256), strict=True)
        return torch.cat([
            (self._rows[i] @ x[:, :h, None] + self._columns[i] @ x[:, h:, None])[..., 0] for x, i in parts
        ])  # fmt: skip

    def directions(self, index: Tensor) -> Tensor:
        """Of contenders [N, C], [N, C, H + D]: their logit is this times a place."""
        return torch.cat([self._rows[index], self._columns[index]], dim=2) @ self._inverse


def _root(gram: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram.double())
    return (vectors * values.clamp(min=values.max() * 1e-10).sqrt()).T.float()


def least_squares(seen: Tensor, wrong: Tensor) -> Tensor:
    """The linear map [F, F] from places [N, F] to the part of them that is noise [N, F], its ridge by held-out rows."""
    held = torch.arange(len(seen)) % HELD_OUT == 0
    scale = seen.square().mean()

    def solved(x: Tensor, y: Tensor, ridge: float) -> Tensor:
        gram = (x.T @ x).double()
        gram.diagonal().add_(ridge * float(scale))
        found: Tensor = torch.linalg.solve(gram, (x.T @ y).double())
        return found.float()

    errors = [float((seen[held] @ solved(seen[~held], wrong[~held], r) - wrong[held]).square().mean()) for r in RIDGES]
    return solved(seen, wrong, RIDGES[errors.index(min(errors))])


def from_tokens(seen: Tensor, directions: Tensor, logits: Tensor, right: Tensor, passes: int = 40) -> Tensor:
    """The same map, fitted to the clean tokens of some rows alone.

    Args:
        seen: [N, F] places.
        directions: [N, C, F] of contenders.
        logits: [N, C] as answered.
        right: [N] int64 the clean token's place among the contenders.
    """
    scale = seen.std()
    directions = directions * scale
    held = torch.arange(len(seen)) % HELD_OUT == 0
    found = torch.zeros(seen.shape[1], seen.shape[1])
    best = F.cross_entropy(logits[held], right[held])
    for penalty in (0.1, 1.0):
        weights = torch.zeros(seen.shape[1], seen.shape[1], requires_grad=True)
        optimizer = torch.optim.Adam([weights], lr=0.3 / seen.shape[1])
        for _ in range(passes):
            optimizer.zero_grad()
            loss = _loss(weights, seen[~held] / scale, directions[~held], logits[~held], right[~held])
            (loss + penalty * weights.square().mean() * len(weights)).backward()
            optimizer.step()
            with torch.no_grad():
                reached = _loss(weights, seen[held] / scale, directions[held], logits[held], right[held])
            if reached < best:
                best, found = reached, weights.detach().clone()
    return found


def _loss(weights: Tensor, seen: Tensor, directions: Tensor, logits: Tensor, right: Tensor) -> Tensor:
    corrected = logits - (directions @ (seen @ weights)[:, :, None])[..., 0]
    return F.cross_entropy(corrected, right)
