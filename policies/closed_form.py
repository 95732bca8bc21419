"""How often an answer survives Gaussian noise on its logits: the closed form, and the scale that delivers a level.

A(z, sigma) = E_{u ~ N(0,1)} [ prod_{i != top} Phi(u + gap_i / sigma) ], gap_i = z_top - z_i: condition on the noise u
of the top logit, the others are independent of it and of each other. The modulation is AIM's (arXiv 2603.12755), the
closed form this project's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NODES = 129
REACH = 8.0
_CHUNK_ELEMENTS = 2**24


def agreement(logits: Tensor, sigma: float) -> Tensor:
    """Probability that argmax(z + sigma * eps) is argmax z, eps ~ N(0, I_K), per row.

    The expectation over u is the trapezoidal rule, which converges geometrically for an integrand that is analytic and
    vanishes at both ends (Trefethen and Weideman, SIAM Review 2014); the product is summed in logarithms.

    Args:
        logits: [B, K], any float dtype; -inf masks a class out.
        sigma: noise scale in logit units, >= 0.

    Returns:
        [B] float64 in [0, 1].

    Raises:
        ValueError: logits of another shape, with a NaN or without a finite entry in a row; a sigma that is not finite
            or negative.
    """
    _check_logits(logits)
    if not (math.isfinite(sigma) and sigma >= 0.0):
        raise ValueError(f"sigma must be finite and >= 0, not {sigma}")
    if sigma == 0.0 or logits.shape[1] == 1:
        return torch.ones(logits.shape[0], dtype=torch.float64, device=logits.device)
    step = max(1, _CHUNK_ELEMENTS // (NODES * logits.shape[1]))
    return torch.cat([_agreement(rows, sigma) for rows in torch.split(logits, step)])


def _agreement(logits: Tensor, sigma: float) -> Tensor:
    z = logits.double()
    top, index = z.max(dim=1, keepdim=True)
    scaled = ((top - z) / sigma).unsqueeze(1)
    u = torch.linspace(-REACH, REACH, NODES, dtype=torch.float64, device=z.device)
    log_phi = torch.special.log_ndtr(u[None, :, None] + scaled)
    # The top's own factor Phi(u) is in the sum over all classes, and comes out again.
    own = torch.special.log_ndtr(u)[None, :]
    log_product = log_phi.sum(dim=2) - own
    weight = torch.exp(-0.5 * u * u) * ((2.0 * REACH / (NODES - 1)) / math.sqrt(2.0 * math.pi))
    return (torch.exp(log_product) * weight).sum(dim=1).clamp(0.0, 1.0)


def sigma_for(logits: Tensor, utility: float) -> float:
    """The noise scale at which the mean closed-form agreement over rows equals a level.

    Args:
        logits: [N, K] of unlabelled inputs.
        utility: the level, in (0, 1].

    Returns:
        sigma in logit units, by bisection to a relative 1e-4; 0.0 for a level of 1.

    Raises:
        ValueError: a level out of range, or below what any noise reaches (1/K).
    """
    if not 0.0 < utility <= 1.0:
        raise ValueError(f"utility must lie in (0, 1], not {utility}")
    if utility == 1.0:
        return 0.0
    low, high = 1e-6, 1e6
    if float(agreement(logits, high).mean()) > utility:
        raise ValueError(f"no noise brings these {logits.shape[1]} classes down to {utility}: the floor is about 1/K")
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        if float(agreement(logits, middle).mean()) > utility:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] < 1 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating point of shape [B, K], not {logits.dtype} {tuple(logits.shape)}")
    top = logits.amax(dim=1) if logits.shape[0] else logits.new_zeros(1)
    if not bool(torch.isfinite(top).all()):  # amax propagates NaN, and +inf or a row of -inf has no finite top
        raise ValueError("logits must not hold NaN or +inf, and each row needs one finite entry")
