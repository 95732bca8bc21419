"""From logits to the next token: temperature, top-k, top-p and keyed Gumbel noise, so that a seed is a promise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """How one answer is drawn.

    Attributes:
        max_tokens: most tokens of the answer, at least 1.
        temperature: 0 is greedy.
        top_p: nucleus, in (0, 1].
        top_k: most likely tokens to draw from; 0 is all.
        seed: makes the answer reproducible, whatever else is in the batch; None draws one.
        stop: texts that end the answer and are cut off it.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draw:
    """One row's step: how to draw, and the seed and position that key its noise."""

    params: SamplingParams
    seed: int
    position: int


def sample(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Scores whose argmax is each row's next token.

    Adding Gumbel noise and taking the argmax samples from the softmax (Gumbel, 1954), and the noise is a function of
    seed, position and token alone.

    Args:
        logits: [N, V] float32.
        draws: one a row.

    Returns:
        [N, V] float32; greedy rows unchanged, the same tensor where all are.
    """
    rows = [index for index, draw in enumerate(draws) if draw.params.temperature > 0.0]
    if not rows:
        return logits
    params = [draws[index].params for index in rows]
    index = torch.tensor(rows, device=logits.device)
    temperature = torch.tensor([p.temperature for p in params], device=logits.device)
    scores = logits[index] / temperature[:, None]
    for row, p in enumerate(params):
        if p.top_k:
            scores[row] = _top_k(scores[row], p.top_k)
        if p.top_p < 1.0:
            scores[row] = _top_p(scores[row], p.top_p)
    keys = torch.tensor([_key(draws[i].seed, draws[i].position) for i in rows], device=logits.device)
    return logits.index_copy(0, index, scores + gumbel(keys, logits.shape[1]))


def gumbel(keys: Tensor, size: int) -> Tensor:
    """Standard Gumbel noise [N, size] float32, a fixed function of keys [N] int64 and the column (splitmix64)."""
    x = keys[:, None] + torch.arange(size, device=keys.device) * _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    x = x ^ _shift(x, 31)
    # Small uniforms make the winners, and those float32 resolves finely; the clamp keeps 1.0 out of the logarithm.
    uniform = ((_shift(x, 24) + 0.5) * 2.0**-40).float().clamp_(max=1.0 - 2.0**-24)
    noise: Tensor = -torch.log(-torch.log1p(-uniform))
    return noise


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN, _MIX1, _MIX2 = (_signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    shifted: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def _key(seed: int, position: int) -> int:
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _top_k(scores: Tensor, k: int) -> Tensor:
    threshold = scores.topk(min(k, len(scores))).values[-1]
    return scores.masked_fill(scores < threshold, -torch.inf)


def _top_p(scores: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches p."""
    ordered, order = scores.sort(descending=True)
    probabilities = ordered.softmax(0)
    before = probabilities.cumsum(0) - probabilities
    return scores.index_fill(0, order[before >= p], -torch.inf)
