"""What a model's levels are solved on: unlabelled inputs of its final layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from policies.calibration.calibration import Calibration
from policies.calibration.candidates import Candidates
from policies.calibration.delivered import Readout
from policies.calibration.schemes import Scheme

Answered = Callable[[Callable[[float], None]], "CalibrationSample"]
"""Who is told the share done, to inputs as they are met near each level, the coarse calibration being installed."""


@dataclass(frozen=True)
class CalibrationSample:
    """Inputs of a final layer, and its clean answers to them.

    Attributes:
        features: [N, H] float32.
        logits: [N, K] float32, its clean answers, or of a large vocabulary the highest of each row.
        readout: for masks, interpolation of the logits to the pixels that are judged.
        metric: [H, m] float32, the noise field's metric; None: distances between features as they are.
        field_features: for masks [N, H], the mean of each row's block, from which its noise comes.
        at: for text [N] int64, the ladder position at which the answer that a row is a step of was being given.
        answer: for text [N] int64, which answer each row is a step of; steps of one answer depend on each other.
        answered: for text, the sample to solve on, once this one gave a coarse calibration and that is installed.
    """

    features: Tensor
    logits: Tensor | Candidates
    readout: Readout | None = None
    metric: Tensor | None = None
    field_features: Tensor | None = None
    at: Tensor | None = None
    answer: Tensor | None = None
    answered: Answered | None = None

    def solved(
        self,
        secret: bytes,
        fingerprint: str,
        scheme: Scheme,
        *,
        field: Calibration | None = None,
        field_name: str = "",
        progress: Callable[[float], None] | None = None,
    ) -> Calibration:
        """The levels on the field of a secret, a new one of a name or one that is kept.

        Raises:
            ValueError: fewer than 100 rows.
        """
        return Calibration.fit(
            secret,
            fingerprint,
            self.features,
            self.logits,
            depth=scheme.depth,
            at=self.at,
            relative_length_scale=scheme.length_scale,
            metric=self.metric,
            block=scheme.block,
            balance=scheme.balance,
            field=field,
            field_name=field_name,
            field_features=self.field_features,
            readout=self.readout,
            contention=scheme.contention,
            tolerance=scheme.tolerance,
            progress=progress,
        )
