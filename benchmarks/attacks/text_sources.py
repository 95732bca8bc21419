"""Where a text model's noise comes from: fresh for every query, the ladder, and ladders whose tokens share noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.attacks.sources import secret
from benchmarks.attacks.text_victim import Clean, Victim, kept
from policies.calibration.calibration import _median_distance
from policies.calibration.schemes import TEXT
from policies.field.ladder import NoiseLadder
from policies.field.variance import POSITIONS, scale_of

Array = NDArray[np.float32]
DIRECTIONS = 64
"""Principal directions of the final layer's rows in which tokens are alike or not."""
_CHUNK = 512
_FINEST = POSITIONS // 2**12


@dataclass(frozen=True)
class Vocabulary:
    """What ties tokens to each other.

    Attributes:
        rows: [V, H] float32, the final layer's.
        spelling: [V] int64, for each token the first one that is the same without case and spaces.
        directions: [V, 64] float32, each row of unit length.
        gram: [H, H] of the rows less their mean.
    """

    rows: Tensor
    spelling: Tensor
    directions: Tensor
    gram: Tensor


def vocabulary(cache: Path, victim: Victim) -> Vocabulary:
    """Compute what the cache does not hold yet."""
    rows, spelling = kept(cache / "vocabulary.pt", lambda: _vocabulary(victim))
    rows = rows.float()
    centred = rows - rows.mean(dim=0)
    gram = centred.T @ centred
    _, axes = torch.linalg.eigh(gram)
    directions = torch.nn.functional.normalize(centred @ axes[:, -DIRECTIONS:], dim=1)
    return Vocabulary(rows, spelling, directions, gram)


def _vocabulary(victim: Victim) -> tuple[Tensor, Tensor]:
    rows = victim.model.final.weight.detach()
    first: dict[str, int] = {}
    texts = [victim.decode(torch.tensor([token])) for token in range(len(rows))]
    spelling = [first.setdefault(text.strip().casefold() or text, token) for token, text in enumerate(texts)]
    return rows.half(), torch.tensor(spelling)


class TiedLadder(NoiseLadder):
    """A ladder in which tokens that are spelt alike have one noise."""

    def __init__(self, tie: Tensor, *args: Any, **sizes: Any) -> None:
        super().__init__(*args, **sizes)
        self._tie = tie.numpy()

    def _normal(self, name: str, shape: tuple[int, int], index: int = 0) -> Array:
        normals = super()._normal(name, shape, index)
        return normals[:, self._tie] if name == "C" else normals


class SharedLadder(NoiseLadder):
    """A ladder in which tokens share noise as far as their rows of the final layer point the same way.

    Two tokens' noise correlates by `share` times the cosine between their directions.
    """

    def __init__(self, share: float, directions: Tensor, *args: Any, **sizes: Any) -> None:
        super().__init__(*args, **sizes)
        self._share, self._directions = share, directions.T.contiguous().numpy()

    def _normal(self, name: str, shape: tuple[int, int], index: int = 0) -> Array:
        if name != "C":
            return super()._normal(name, shape, index)
        common = super()._normal("shared", (shape[0], len(self._directions)), index) @ self._directions
        common *= np.float32(math.sqrt(self._share))
        if self._share < 1.0:
            common += super()._normal(name, shape, index) * np.float32(math.sqrt(1.0 - self._share))
        return common


class Field:
    """The ladder's noise of one secret at the contenders of a step, its levels solved on a sample.

    Args:
        columns: None; "spelling" for `TiedLadder`; a share for `SharedLadder`.
    """

    def __init__(self, number: int, sample: Clean, words: Vocabulary, columns: str | float | None = None) -> None:
        ell = TEXT.length_scale * _median_distance(sample.features, sample.tokens)
        sizes: dict[str, Any] = {
            "features": sample.features.shape[1], "classes": len(words.rows), "length_scale": ell, "depth": TEXT.depth,
        }  # fmt: skip
        key = (secret(number), "text")
        if isinstance(columns, float):
            self.ladder: NoiseLadder = SharedLadder(columns, words.directions, *key, **sizes)
        elif columns:
            self.ladder = TiedLadder(words.spelling, *key, **sizes)
        else:
            self.ladder = NoiseLadder(*key, **sizes)
        self._sample, self._seen = sample, self.ladder.phi(sample.features)
        self._path = {0: self.ladder._start(), POSITIONS: self.ladder._end()}
        self._positions: dict[float, int] = {}

    def __call__(self, features: Tensor, index: Tensor, level: float) -> Tensor:
        """Noise [N, C] of steps with features [N, H] at their contenders [N, C], at a level."""
        return self._at(self.ladder.phi(features), index, self.matrix(level))

    def matrix(self, level: float) -> Tensor:
        """C [D, V] at a level."""
        return torch.from_numpy(self._path[self.position(level)])

    def position(self, level: float) -> int:
        """Where the sample's answers agree with the clean ones as often as a level says."""
        if level not in self._positions:
            low, high = 0, POSITIONS
            while high - low > _FINEST:
                middle = (low + high) // 2
                if middle not in self._path:
                    self._path[middle] = self.ladder._bridge(low, self._path[low], high, self._path[high], middle)
                low, high = (middle, high) if self._agreement(middle) > level else (low, middle)
            self._positions[level] = low
        return self._positions[level]

    def scale(self, level: float) -> float:
        """Standard deviation of the noise at a level, in logit units."""
        return scale_of(self.position(level))

    def _agreement(self, position: int) -> float:
        noise = self._at(self._seen, self._sample.index, torch.from_numpy(self._path[position]))
        return float(((self._sample.logits + noise).argmax(dim=1) == 0).float().mean())

    @staticmethod
    def _at(phi: Tensor, index: Tensor, matrix: Tensor) -> Tensor:
        columns = matrix.T.contiguous()
        parts = zip(phi.split(_CHUNK), index.split(_CHUNK), strict=True)
        return torch.cat([(columns[i] @ p[:, :, None])[..., 0] for p, i in parts])


class Fresh:
    """The paper's: independent noise for every query."""

    def __init__(self, number: int, sample: Clean) -> None:
        self._generator, self._sample = torch.Generator().manual_seed(number), sample
        self._sigma: dict[float, float] = {}

    def __call__(self, features: Tensor, index: Tensor, level: float) -> Tensor:
        """Noise [N, C] of steps at a level."""
        return self.scale(level) * torch.randn(index.shape, generator=self._generator)

    def scale(self, level: float) -> float:
        """Standard deviation of the noise at a level, in logit units."""
        if level not in self._sigma:
            low, high = 0, POSITIONS
            noise = torch.randn(self._sample.logits.shape, generator=self._generator)
            while high - low > _FINEST:
                middle = (low + high) // 2
                agreed = ((self._sample.logits + scale_of(middle) * noise).argmax(dim=1) == 0).float().mean()
                low, high = (middle, high) if float(agreed) > level else (low, middle)
            self._sigma[level] = scale_of(low)
        return self._sigma[level]


Source = Field | Fresh
