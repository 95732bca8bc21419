"""A level's matrix, laid out for the few rows of a step."""

from __future__ import annotations

from torch import Tensor

from deployments.engines.packed_linear import pack, packable, packed_product


class LevelMatrix:
    """C [D, V] float32 of a level; on a CPU packed as well, which takes its size in memory again.

    Torch's product takes a CPU 0.3 ms for one row of a vocabulary of 49,152 and twice that for two; with packed weights
    it takes 0.4 ms for up to eight.

    Attributes:
        plain: C itself.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.plain = matrix
        self._packed = pack(matrix.T) if packable(matrix) else None

    @property
    def nbytes(self) -> int:
        """Of all layouts, in bytes."""
        return self.plain.nbytes * (1 if self._packed is None else 2)

    def noise(self, phi: Tensor, most: int) -> Tensor:
        """The level's noise at phi [N, D]: [N, V] float32.

        Args:
            most: how many rows there can be, by which the layout is chosen: N itself may not be known to a compiler.
        """
        return phi @ self.plain if self._packed is None or most == 1 else packed_product(phi, self._packed)
