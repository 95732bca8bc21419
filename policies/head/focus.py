"""Focus modulation: half-normal noise on chosen classes or tokens, where they are in contention.

z'_t = z'_t + s * delta_t * |xi_t(h)|, s = +1 to favour and -1 to avoid (AIM, arXiv 2603.12755). The unitless strength
and the restriction to rows in contention are this project's: on all rows a strong focus drowns the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import torch
from torch import Tensor

from policies.answers import highest
from policies.terms import FOCUS_LIMIT


@dataclass(frozen=True, order=True)
class Target:
    """What focus acts on.

    Attributes:
        index: a class, or a token.
        prefix: the tokens of its phrase before it, which the text must end with; empty: anywhere.
    """

    index: int
    prefix: tuple[int, ...] = ()


@lru_cache(4096)
def focus_std(strength: float, median_gap: float) -> float:
    """delta = G / Phi^{-1}(1 - |f| / 2): at a margin of G the half-normal wins with probability |f|.

    Args:
        strength: f in [-0.99, 0.99].
        median_gap: G >= 0 in logit units, the median margin of rows in contention.

    Returns:
        delta >= 0 in logit units, the standard deviation of the underlying normal.

    Raises:
        ValueError: a strength or a gap out of range.
    """
    if not abs(strength) <= FOCUS_LIMIT:
        raise ValueError(f"focus strength must lie in [-{FOCUS_LIMIT}, {FOCUS_LIMIT}], not {strength}")
    if not 0.0 <= median_gap < float("inf"):
        raise ValueError(f"median_gap must be finite and >= 0, not {median_gap}")
    # By symmetry in the lower tail, where a small strength keeps its precision.
    tail = abs(strength) / 2.0
    return median_gap / -NormalDist().inv_cdf(tail) if tail > 0.0 else 0.0


def apply_focus(logits: Tensor, targets: Tensor, delta: Tensor, xi: Tensor, contention: int) -> Tensor:
    """Add signed half-normal noise to target classes in the rows where they contend.

    To favour, a target acts where it is among the `contention` highest but not first. To avoid, it acts where it is
    first; other avoided targets in contention give way with it, or the next spelling of the same word would step in.

    Args:
        logits: [N, K, ...] float32, after utility; what follows K are places of a map.
        targets: [T] int64, distinct classes.
        delta: [N, T] float32, signed standard deviations in logit units; 0 for no focus.
        xi: [N, T, ...] float32, the focus field at the targets, N(0, 1) over keys.
        contention: how many of the highest logits contend, at least 2.

    Returns:
        [N, K, ...] float32, a new tensor.
    """
    places = (1,) * (logits.ndim - 2)
    delta, chosen = delta.reshape(*delta.shape, *places), targets.reshape(-1, *places)
    chosen = chosen.expand(logits.shape[0], -1, *logits.shape[2:])
    at_targets = logits.gather(1, chosen)
    leader = highest(logits)[:, None]
    if contention == 2:
        threshold = logits.scatter(1, leader, -torch.inf).amax(dim=1, keepdim=True)
    else:
        threshold = logits.topk(min(contention, logits.shape[1]), dim=1).values[:, -1:]
    first = leader == chosen
    contends = at_targets >= threshold
    yields = (first & (delta < 0)).any(dim=1, keepdim=True)
    acts = torch.where(delta > 0, contends & ~first, contends & yields) & (delta != 0)
    return logits.scatter_add(1, chosen, torch.where(acts, delta * xi.abs(), 0.0))
