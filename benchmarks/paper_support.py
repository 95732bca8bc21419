"""What the benchmarks of the paper's experiments share: noises, places on the ladder, who wins under noise, figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from policies.closed_form import REACH
from policies.field.variance import MAX_VARIANCE, MIN_VARIANCE, POSITIONS

matplotlib.use("Agg")

SECRET = b"the noise secret of benchmarks/paper_curves.py"
NOISES = (("independent", "o"), ("ladder", "x"))
NODES = 33
"""Half a standard deviation apart, at which the trapezoidal rule is exact to six digits for a normal's density."""
_ROWS = 10_000


def position_of(sigma: float) -> int:
    """The ladder position whose noise has a standard deviation nearest to sigma."""
    share = math.log(sigma * sigma / MIN_VARIANCE) / math.log(MAX_VARIANCE / MIN_VARIANCE)
    return 1 + round(share * (POSITIONS - 1))


def winning(logits: Tensor, sigma: float) -> Tensor:
    """Probability that each class of each row wins under independent noise: `policies.closed_form` for every class.

    A winner lies near the highest logit or above, so one grid of places x there serves all classes of a row:
    P(k wins) = E over x of k's place of prod_{j != k} Phi((x - z_j) / sigma).

    Args:
        logits: [N, K].
        sigma: in logit units, above 0.

    Returns:
        [N, K] float64.
    """
    u = torch.linspace(-REACH, REACH, NODES, dtype=torch.float64)
    parts = []
    for z in logits.double().split(_ROWS):
        ahead = (z.amax(dim=1, keepdim=True) - z)[:, :, None] / sigma + u
        log_phi = torch.special.log_ndtr(ahead)
        density = (log_phi.sum(dim=1, keepdim=True) - log_phi - 0.5 * ahead * ahead).exp_()
        parts.append(density.sum(dim=2) * (2.0 * REACH / (NODES - 1) / math.sqrt(2.0 * math.pi)))
    return torch.cat(parts)


def finish(figure: Any, axis: Any, path: Path, title: str) -> None:
    """Legend, title, file."""
    axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KB\n", flush=True)
