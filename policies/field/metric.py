"""The metric of a noise field: short between what a client can pass off as one input, long between different inputs.

Linear discriminant analysis with one class per input (Fisher 1936): whiten the features by how near-duplicates of an
input scatter, then keep the directions in which different inputs of one predicted class differ most. Augmented repeats
then get nearly one and the same noise, while the noise of one input says little about that of another.
"""

from __future__ import annotations

import torch
from torch import Tensor

DIRECTIONS = 32
RIDGE = 0.1
"""Share of the mean scatter that is added to every direction, so that unseen ones are not blown up."""


def duplicate_metric(nearby: Tensor, features: Tensor, labels: Tensor, directions: int = DIRECTIONS) -> Tensor:
    """A projection under which near-duplicates lie close and different inputs of a class far apart.

    Args:
        nearby: [M, Q, H] features of M inputs, each in Q near-duplicates: shifted, flipped, re-encoded.
        features: [N, H] of different inputs.
        labels: [N] int64, their predicted classes.
        directions: m, columns of the projection; H where that is less.

    Returns:
        [H, m] float32. Fitted on other inputs it is another field with other noise, so a refit must keep it.

    Raises:
        ValueError: fewer than two near-duplicates each, or shapes that do not match.
    """
    if nearby.ndim != 3 or nearby.shape[1] < 2 or nearby.shape[2] != features.shape[1]:
        raise ValueError(f"nearby must be [M, Q >= 2, {features.shape[1]}], not {list(nearby.shape)}")
    duplicates, copies = nearby.double(), nearby.shape[1]
    within = _scatter((duplicates - duplicates.mean(dim=1, keepdim=True)).flatten(0, 1)) * copies / (copies - 1)
    different = features.double()
    for label in set(labels.tolist()):
        rows = labels == label
        different[rows] -= different[rows].mean(dim=0)
    values, vectors = torch.linalg.eigh(within)
    scale = (values.clamp(min=0.0) + RIDGE * values.mean()).rsqrt()
    whiten = vectors * scale @ vectors.T
    _, axes = torch.linalg.eigh(whiten @ _scatter(different) @ whiten)
    projection: Tensor = whiten @ axes[:, -directions:]
    return projection.float()


def _scatter(rows: Tensor) -> Tensor:
    return torch.mm(rows.T, rows) / float(len(rows))
