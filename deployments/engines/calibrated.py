"""What every engine shares: levels solved on this installation's noise field, and the layer that delivers them."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from deployments.config import ModelSpec
from deployments.engines.live import Kept, LiveRows, expected
from deployments.engines.loading import LoadError
from deployments.engines.sample import CalibrationSample
from policies.audit import LevelAudit, LevelReport, Tally
from policies.calibration import Calibration
from policies.layer import ModulatedLayer, layer_shape

COARSE = 0.1
"""Agreement between points of the curve that shows where to answer a sample."""
ANSWERING = 0.7
"""Share of a calibration's time that goes into answering, where the sample is to be answered."""


class CalibratedEngine(ABC):
    """An engine whose final layer is modulated: `fit` or a stored calibration, then `install`, then it may serve.

    Attributes:
        model_id: the id that clients name.
        fingerprint: 16 hex digits that identify the weights and all else that decides an answer.
        final: the model's own final layer.
        depth: D of the noise field.
        live: recent inputs of the final layer.
        counts: rows answered and rows that agreed, by level.
    """

    tolerance: ClassVar[float]
    """Agreement between neighbouring points of a calibration curve."""
    contention: ClassVar[int] = 2
    """How many of a row's highest logits contend for focus."""
    length_scale: ClassVar[float]
    """Default ell, in median distances between inputs of one class (docs/decisions/0004)."""
    block: ClassVar[int] = 1
    """Side of the squares of a map that share their noise, in logits."""
    balanced: ClassVar[bool] = False
    """Whether a level answers each class as often as the clean model does."""
    live_capacity: ClassVar[int] = 8192
    """Most live rows kept: half of the inputs for refits, half to judge by."""
    live_judged: ClassVar[int]
    """Most of them that the audit judges at a time."""
    live_refitted: ClassVar[int] = 4096
    """Most of them that a refit takes."""
    least_live: ClassVar[int]
    """Fewest inputs that a live refit is solved on, and judged by: pictures, or prompts."""
    spec: ModelSpec
    model_id: str
    fingerprint: str
    final: nn.Module
    depth: int
    _layer: ModulatedLayer | None = None

    def __init__(self) -> None:
        self.live = LiveRows(self.live_capacity)
        self.counts = LevelAudit()
        self._expected: dict[float, Tally] = {}
        self._judged = -1
        self._recalibrating = threading.Lock()

    @abstractmethod
    def calibration_sample(self, path: Path, progress: Callable[[str], None] = lambda _: None) -> CalibrationSample:
        """What to calibrate on, from the inputs that a path names."""

    @abstractmethod
    def refit_sample(self, path: Path, progress: Callable[[str, float], None]) -> CalibrationSample:
        """As `calibration_sample`, for a refit: what the field has is left out. `progress` is told step and share."""

    @abstractmethod
    def _sample_of(self, kept: Kept) -> tuple[CalibrationSample, Tensor]:
        """Live rows as a sample, and the group of each row that is judged."""

    @abstractmethod
    def _adopt(self, adopt: Callable[[], None]) -> None:
        """Call `adopt` while no forward runs."""

    def fit(
        self,
        sample: CalibrationSample,
        secret: bytes,
        *,
        stored: Calibration | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Calibration:
        """Solve the levels on this installation's noise field.

        Args:
            sample: from `calibration_sample`.
            secret: the installation's noise secret.
            stored: an earlier calibration of this model whose field is kept: a refit.
            progress: called with the share done, 0 to 1.
        """
        tell = progress or (lambda _share: None)
        if sample.answered is None:
            return self._solve(sample, secret, stored, self.tolerance, tell)
        field = self._solve(sample, secret, stored, COARSE)
        features, classes = layer_shape(self.final)
        ladder = field.ladder(secret, features=features, classes=classes)
        met = sample.answered(field, ladder, lambda share: tell(ANSWERING * share))
        return self._solve(met, secret, field, self.tolerance, lambda share: tell(ANSWERING + (1 - ANSWERING) * share))

    def _solve(
        self,
        sample: CalibrationSample,
        secret: bytes,
        stored: Calibration | None,
        tolerance: float,
        progress: Callable[[float], None] | None = None,
    ) -> Calibration:
        return Calibration.fit(
            secret,
            self.fingerprint,
            sample.features,
            sample.logits,
            depth=self.depth,
            at=sample.at,
            relative_length_scale=self.spec.length_scale or self.length_scale,
            metric=sample.metric,
            block=self.block,
            balance=self.balanced,
            field=stored,
            field_features=sample.field_features,
            readout=sample.readout,
            contention=self.contention,
            tolerance=tolerance,
            progress=progress,
        )

    def install(self, calibration: Calibration, secret: bytes) -> None:
        """Put the modulated layer into the model's path; without it nothing is served.

        Raises:
            ValueError: a calibration of another model.
        """
        if calibration.fingerprint != self.fingerprint:
            raise ValueError(f"calibration of {calibration.fingerprint}, but {self.model_id} is {self.fingerprint}")
        layer = ModulatedLayer(self.final, calibration, secret, contention=self.contention)
        self._put(layer)
        self._layer = layer

    def recalibrate(self, calibration: Calibration) -> None:
        """Take a refit while serving: levels move along the same noise. From any thread but the forward's.

        Raises:
            ValueError: a calibration of another noise field.
        """
        with self._recalibrating:
            self._adopt(self.layer.recalibrate(calibration))
            self.counts.forget()
            self._judged, self._expected = -1, {}

    def live_sample(self) -> CalibrationSample:
        """The live rows of half of the inputs as a sample to refit on; `judge_live` judges by the other half.

        Raises:
            LoadError: too few of them.
        """
        kept = self.live.kept()
        inputs, least = len(kept.groups.unique()), 2 * self.least_live
        if inputs < least:
            raise LoadError(
                f"{self.model_id} has live rows of {inputs} inputs; a refit on them needs {least}: half to solve the"
                " levels on, half to judge them by"
            )
        return self._sample_of(kept.solved().thinned(self.live_refitted))[0]

    def judge_live(self) -> None:
        """Bring the expected levels up to the live rows of now that no refit is solved on; takes up to two seconds.

        A level whose matrix is not kept, since others were used more lately, is judged once and then left as it was.
        """
        with self._recalibrating:
            levels = [level for level in self.audit() if level < 1.0]
            taken, used = self.live.taken, self.layer.levels_kept()
            if not levels or (taken == self._judged and set(levels) <= set(self._expected)):
                return
            kept = self.live.kept().held_out().thinned(self.live_judged)
            if not len(kept.rows):
                return
            levels = [level for level in levels if level not in self._expected or max(level, self.floor) in used]
            self._expected, self._judged = self._expected | expected(*self._sample_of(kept), self.layer, levels), taken

    def reports(self) -> list[LevelReport]:
        """Every level below 1.0 in use: what was delivered lately, and what is expected as of `judge_live`."""
        return self.counts.reports(self.audit(), self._expected)

    def audit(self) -> dict[float, tuple[int, int]]:
        """Since start, by level: rows judged (images, some pixels of a mask, decoding steps), and those whose answer
        after utility, before focus, equals the clean one."""
        return self.counts.totals() if self.layer else {}

    @property
    def layer(self) -> ModulatedLayer:
        """The modulated layer in the model's path.

        Raises:
            RuntimeError: `install` has not been called: a model without it would sell every level at full quality.
        """
        if self._layer is None:
            raise RuntimeError(f"{self.model_id} is not calibrated: call install() first")
        return self._layer

    @property
    def floor(self) -> float:
        """The lowest level that the model delivers."""
        return self.layer.floor

    @abstractmethod
    def _put(self, layer: ModulatedLayer) -> None:
        """Route the model's answers through `layer`."""
