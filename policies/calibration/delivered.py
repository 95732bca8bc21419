"""What the noise at a position of the ladder delivers: agreement of clean and noisy answers over a sample of rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import Tensor

from policies.answers import highest
from policies.calibration.candidates import Candidates
from policies.field.variance import scale_of

_CHUNK_ELEMENTS = 2**25
Readout = Callable[[Tensor], Tensor]
"""Logits [N, K] at the model's resolution to the logits [M, K] from which the client's answer is read."""


class Delivered:
    """Measured agreement on the installation's own field.

    Rows of answers that were themselves modulated are judged near the noise that modulated them: at a position, those
    of the two neighbouring positions in `at`, weighted linearly in the noise's scale.

    Args:
        phi: [N, D] float32 from the ladder.
        logits: clean answers.
        readout: for masks, interpolation to the client's resolution.
        at: [N] int64, the position at which the answer that a row is a step of was given; None: it does not matter.

    Attributes:
        answers: how many are judged.
    """

    def __init__(
        self, phi: Tensor, logits: Tensor | Candidates, readout: Readout | None = None, at: Tensor | None = None
    ) -> None:
        if at is None:
            samples = {0: JudgedRows(phi, logits, readout)}
        else:
            samples = {p: JudgedRows(phi[at == p], logits[at == p], readout) for p in sorted(set(at.tolist()))}
        self._samples = list(samples.values())
        self._positions = list(samples)
        self.answers = sum(sample.answers for sample in self._samples)

    def __call__(self, matrix: Tensor, position: int) -> float:
        """Agreement under C [D, K] of a position."""
        here, above = scale_of(position), bisect_right(self._positions, position)
        if above == 0:
            return self._samples[0](matrix, here)
        if above == len(self._positions):
            return self._samples[-1](matrix, here)
        low, high = scale_of(self._positions[above - 1]), scale_of(self._positions[above])
        share = (here - low) / (high - low)
        return (1.0 - share) * self._samples[above - 1](matrix, here) + share * self._samples[above](matrix, here)


class JudgedRows:
    """Rows that are judged alike.

    Attributes:
        answers: how many.
        clean: [answers] int64, the clean answers; not of `Candidates`.
    """

    clean: Tensor

    def __init__(self, phi: Tensor, logits: Tensor | Candidates, readout: Readout | None) -> None:
        self._phi, self._logits, self._readout = phi, logits, readout
        if isinstance(logits, Candidates):
            self.answers = len(logits)
        else:
            self.clean = highest(readout(logits.float()) if readout else logits)
            self.answers = len(self.clean)

    def __call__(self, matrix: Tensor, scale: float) -> float:
        return float(self.same(matrix.to(self._phi.device), scale).float().mean())

    def same(self, matrix: Tensor, scale: float) -> Tensor:
        """Whether answers are still the clean ones under C [D, K] of standard deviation `scale`: [answers] bool."""
        if isinstance(self._logits, Candidates):
            return self._logits.survives(self._phi, matrix, scale)
        if self._readout:
            return highest(self.noisy(matrix)) == self.clean
        step = max(1, _CHUNK_ELEMENTS // matrix.shape[1])
        chunks = zip(torch.split(self._logits, step), torch.split(self._phi, step), strict=True)
        noisy = torch.cat([highest(torch.addmm(z.float(), phi, matrix)) for z, phi in chunks])
        return noisy == self.clean

    def noisy(self, matrix: Tensor) -> Tensor:
        """Logits [answers, K] float32 under C [D, K], from which answers are read."""
        assert isinstance(self._logits, Tensor)
        noisy = torch.addmm(self._logits.float(), self._phi, matrix.to(self._phi.device))
        return self._readout(noisy) if self._readout else noisy
