"""The paper's modulation with independent noise (AIM, arXiv 2603.12755), for experiments; never served: it averages."""

from __future__ import annotations

import torch
from torch import Tensor


def independent_utility(logits: Tensor, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    """z + sigma * eps with fresh eps ~ N(0, I_K) in each call; [N, K] of any float dtype, sigma in logit units."""
    eps = torch.randn(logits.shape, generator=generator, device=logits.device)
    return (logits.float() + sigma * eps).to(logits.dtype)


def independent_focus(logits: Tensor, targets: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Half-normal noise |N(0, std^2)| on target classes [T] of every row; a negative std subtracts it."""
    xi = torch.randn(logits.shape[0], len(targets), generator=generator, device=logits.device).abs()
    out = logits.float().clone()
    out[:, targets] += std * xi
    return out.to(logits.dtype)
