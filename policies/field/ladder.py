"""The noise ladder: utility noise as one fixed Brownian motion in the variance, over a smooth field on the features.

phi(h) = cos(h P w / ell + b), scaled to unit length (random Fourier features, Rahimi and Recht, NIPS 2007, in the space
of a metric P), and noise(h, v) = phi(h) C(v), with C a D x K matrix of Brownian motions in v. Over the keys the noise
of a fixed h is exactly N(0, v I_K); levels are nested: the noise at v is the noise at u < v plus an independent
N(0, v - u). C is built by Lévy's midpoint construction, so any of its 2^15 positions costs 16 normal matrices, depends
on no other level in use, and two positions however near differ by a fresh increment.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from policies.field.balance import Balance
from policies.field.variance import MAX_VARIANCE, POSITIONS, variance

Array = npt.NDArray[np.float32]


def phi(features: Tensor, w: Tensor, b: Tensor, *, ones: bool) -> Tensor:
    """Unit vectors [N, D] float32 of features [N, H] of any float dtype; with a column of ones behind them if asked.

    Args:
        w: [H, D] float32, directions over the length scale.
        b: [D] float32, phases in radians.
    """
    waves = torch.addmm(b, features.float(), w).cos_()
    unit = waves / torch.linalg.vector_norm(waves, dim=1, keepdim=True)
    return F.pad(unit, (0, 1), value=1.0) if ones else unit


class NoiseLadder:
    """The noise of one installation and field: a function of secret, field, variance and input only.

    Args:
        secret: the installation's noise secret, at least 16 bytes.
        field: name of the noise field, which all copies of one final layer share.
        features: H, width of the final layer's input.
        classes: K, width of its output.
        length_scale: ell, in the units of the features; inputs nearer than this get nearly the same noise.
        depth: D, number of random features.
        metric: [H, m] float32 projection of the features in whose space distances count; None: the features' own.
        balance: class offsets that are part of the noise, as its mean: phi then has one more column, of ones, and C
            one more row, so D + 1 where D is written below. None: the noise has none.

    Raises:
        ValueError: a secret too short or a size out of range; the message names it.
    """

    def __init__(
        self,
        secret: bytes,
        field: str,
        *,
        features: int,
        classes: int,
        length_scale: float,
        depth: int,
        metric: Tensor | None = None,
        balance: Balance | None = None,
    ) -> None:
        if len(secret) < 16:
            raise ValueError("the noise secret must hold at least 16 bytes")
        if min(features, classes, depth) < 1 or not length_scale > 0.0:
            raise ValueError("features, classes, depth and length_scale must be positive")
        if metric is not None and (metric.ndim != 2 or metric.shape[0] != features):
            raise ValueError(f"metric must be [{features}, m], not {list(metric.shape)}")
        if balance is not None and balance.offsets.shape[1] != classes:
            raise ValueError(f"balance must have offsets of {classes} classes, not {balance.offsets.shape[1]}")
        self.balance = balance
        self.features, self.classes, self.depth, self.length_scale = features, classes, depth, length_scale
        self._key = hashlib.sha256(
            b"\0".join([secret, field.encode(), f"{length_scale!r}".encode(), str(depth).encode()])
        ).digest()
        waves = torch.from_numpy(self._normal("w", (features if metric is None else metric.shape[1], depth)))
        self.w = (waves if metric is None else metric.cpu().float() @ waves) / length_scale
        self.b = torch.from_numpy(self._uniform("b", depth) * np.float32(2.0 * math.pi))

    def phi(self, features: Tensor) -> Tensor:
        """Features [N, H] of any float dtype to unit vectors [N, D] float32, on the features' device.

        With a balance a column of ones stands behind them.
        """
        w, b = self.w.to(features.device), self.b.to(features.device)
        return phi(features, w, b, ones=self.balance is not None)

    def secret_for(self, purpose: str) -> bytes:
        """32 bytes that only this installation and field have, for a purpose of one's own."""
        return hashlib.sha256(self._key + b"\0for\0" + purpose.encode()).digest()

    def matrix(self, position: int) -> Tensor:
        """C at a grid position: [D, K] float32 on the CPU, each entry N(0, variance(position)) over the keys.

        With a balance the position's offsets stand below them.
        """
        low, high = 0, POSITIONS
        at_low, at_high = self._start(), self._end()
        if position in (low, high):
            return self._whole(at_low if position == low else at_high, position)
        variance(position)  # refuses a position off the grid
        while True:
            middle = (low + high) // 2
            at_middle = self._bridge(low, at_low, high, at_high, middle)
            if middle == position:
                return self._whole(at_middle, position)
            if position < middle:
                high, at_high = middle, at_middle
            else:
                low, at_low = middle, at_middle

    def focus_matrix(self) -> Tensor:
        """The focus field's own [D, K] standard normal matrix, float32 on the CPU."""
        columns = torch.from_numpy(self._normal("focus", (self.depth, self.classes)))
        return columns if self.balance is None else F.pad(columns, (0, 0, 0, 1))

    def noise(self, features: Tensor, positions: Tensor) -> Tensor:
        """Utility noise of rows: features [N, H] and grid positions [N] int64 to [N, K] float32."""
        phi = self.phi(features)
        out = torch.zeros(features.shape[0], self.classes, device=features.device)
        for position in torch.unique(positions).tolist():
            if position:
                rows = positions == position
                out[rows] = phi[rows] @ self.matrix(position).to(features.device)
        return out

    def explore(
        self, measure: Callable[[Tensor, int], float], tolerance: float, progress: Callable[[float], None] | None = None
    ) -> list[tuple[int, float]]:
        """Measure a quantity along the path, subdividing where it first falls: sorted (position, value) pairs.

        A cell that goes no lower than the path has been before holds no first crossing, and is left alone.

        Args:
            measure: called with C [D, K] and its position, one of the dyadic grid; 1 at position 0, and falling by and
                large: it may be lower on the way than at the end.
            tolerance: a cell that ends no further below the lowest value before it is not divided.
            progress: called with the share of the way from 1 down to the last value that is done, 0 to 1.
        """
        start, end = self._start(), self._end()
        found = [(at, measure(self._whole(array, at), at)) for at, array in ((0, start), (POSITIONS, end))]
        cells = [(0, start, found[0][1], POSITIONS, end, found[1][1])]
        lowest = found[0][1]
        while cells:
            low, at_low, value_low, high, at_high, value_high = cells.pop()
            lowest = min(lowest, value_low)
            if progress:
                progress(min(1.0, (1.0 - lowest) / max(1e-9, 1.0 - found[1][1])))
            middle = (low + high) // 2
            if middle == low or value_high >= lowest - tolerance:
                continue
            at_middle = self._bridge(low, at_low, high, at_high, middle)
            value = measure(self._whole(at_middle, middle), middle)
            found.append((middle, value))
            cells.append((middle, at_middle, value, high, at_high, value_high))
            cells.append((low, at_low, value_low, middle, at_middle, value))
        return sorted(found)

    def _whole(self, array: Array, position: int) -> Tensor:
        matrix = torch.from_numpy(array)
        return matrix if self.balance is None else torch.cat([matrix, self.balance.at(position)[None]])

    def _start(self) -> Array:
        return np.zeros((self.depth, self.classes), dtype=np.float32)

    def _end(self) -> Array:
        return self._normal("C", (self.depth, self.classes), POSITIONS) * np.float32(math.sqrt(MAX_VARIANCE))

    def _bridge(self, low: int, at_low: Array, high: int, at_high: Array, middle: int) -> Array:
        """Brownian bridge: the path at `middle` given both ends (Lévy's construction, at any split of the interval)."""
        v_low, v, v_high = variance(low), variance(middle), variance(high)
        share = (v - v_low) / (v_high - v_low)
        spread = math.sqrt((v - v_low) * (v_high - v) / (v_high - v_low))
        fresh = self._normal("C", (self.depth, self.classes), middle)
        # In place: at a vocabulary of 49,152 each temporary would be another 12 MB.
        fresh *= np.float32(spread)
        fresh += at_low
        fresh += (at_high - at_low) * np.float32(share)
        return fresh

    def _normal(self, name: str, shape: tuple[int, int], index: int = 0) -> Array:
        """Standard normals by Box and Muller's transform: numpy keeps Philox's words over releases, not its normals."""
        size = shape[0] * shape[1]
        pairs = self._uniform(name, size + size % 2, index).reshape(2, -1)
        radius, angle = np.sqrt(-2.0 * np.log(pairs[0])), np.float32(2.0 * math.pi) * pairs[1]
        normals = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return normals[:size].reshape(shape)

    def _uniform(self, name: str, size: int, index: int = 0) -> Array:
        """Uniforms in (0, 1), float32, from the Philox stream of this ladder's key, a name and an index."""
        digest = hashlib.sha256(self._key + f"{name}:{index}".encode()).digest()
        words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw((size + 1) // 2)
        halves = words.astype("<u8").view("<u4")[:size]
        # In double: the smallest uniforms make the largest normals, and those must not be rounded to 0 or 1.
        return np.asarray((halves + 0.5) * 2.0**-32, dtype=np.float64).astype(np.float32).clip(2.0**-33, 1.0 - 2.0**-24)
