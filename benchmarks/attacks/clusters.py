"""A student that learns names only: an encoder's clusters, each named by what is answered, or known, of its members."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor


class Clusters:
    """K-means of features.

    Args:
        known: [N, F] pictures that are asked about.
        judged: [M, F] pictures to name.
        count: of clusters and of classes, K.
    """

    def __init__(self, known: Tensor, judged: Tensor, count: int) -> None:
        fitted = KMeans(count, n_init=5, random_state=0).fit(known.numpy())
        self._known, self._judged = (torch.from_numpy(fitted.predict(x.numpy())).long() for x in (known, judged))
        self._count = count

    def named(self, labels: Tensor) -> Tensor:
        """One-hot [M, K] of the judged: each cluster has one class for its name, and each class one cluster, in the
        way that labels [n] of the first known pictures meet most often."""
        counts = torch.zeros(self._count, self._count)
        counts.index_put_((self._known[: len(labels)], labels), torch.ones(len(labels)), accumulate=True)
        _, names = linear_sum_assignment(counts.numpy(), maximize=True)
        return torch.eye(self._count)[torch.from_numpy(names)][self._judged]
