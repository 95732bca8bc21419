"""What every engine shares: levels solved on this installation's noise field, and the head that delivers them."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from deployments.config import ModelSpec, Refit
from deployments.engines.errors import LoadError
from deployments.engines.judging import expected
from deployments.engines.live import Kept, LiveRows
from policies.audit import LevelAudit, LevelReport, Tally
from policies.calibration.answering import COARSE
from policies.calibration.calibration import Calibration
from policies.calibration.sample import CalibrationSample
from policies.calibration.schemes import Scheme
from policies.errors import Unavailable
from policies.head.attachment import attach, detach, layer_shape
from policies.head.head import Head
from policies.terms import Modulation

ANSWERING = 0.7
"""Share of a calibration's time that goes into answering, where the sample is to be answered."""
PENDING_RETRY_S = 15
Progress = Callable[[str, float], None]


def untold(_step: str, _share: float) -> None:
    """Progress that nobody waits for."""


class CalibratedEngine(ABC):
    """An engine whose final layer gets a head: level 1.0 is served once it is loaded, the others after `install`.

    Attributes:
        model_id: the id that clients name.
        fingerprint: 16 hex digits that identify the weights and all else that decides an answer.
        final: the model's own final layer.
        field: name of the noise field, which models with copies of one final layer share.
        depth: D of the noise field, where it is a new one.
        slots: of the head.
        live: recent inputs of the final layer.
        counts: positions answered and those that agreed, by level.
    """

    scheme: ClassVar[Scheme]
    """How its levels are solved."""
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
    field: str
    depth: int
    slots: int

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        held_out = spec.refit is Refit.OFF
        self.live = LiveRows(self.live_capacity // (2 if held_out else 1), held_out=held_out)
        self.counts = LevelAudit()
        self._head: Head | None = None
        self._expected: dict[float, Tally] = {}
        self._judged = -1
        self._installing = threading.Lock()

    @abstractmethod
    def calibration_sample(self, path: Path, progress: Progress = untold, *, refit: bool = False) -> CalibrationSample:
        """What to calibrate on, from the inputs that a path names.

        Args:
            progress: told what is being done, and the share of that.
            refit: whether the field is kept, so that what it has need not be found anew.
        """

    @abstractmethod
    def sample_of(self, kept: Kept) -> tuple[CalibrationSample, Tensor]:
        """Live rows as a sample, and the group of each answer that is judged."""

    @abstractmethod
    def _between(self, call: Callable[[], None]) -> None:
        """Call while no forward runs."""

    @property
    def head(self) -> Head:
        """The head behind the final layer.

        Raises:
            Unavailable: no calibration has been installed, so nothing but level 1.0 can be sold.
        """
        if self._head is None:
            raise Unavailable(
                f"The levels of {self.model_id} below 1.0 are still being solved; level 1.0 is served.",
                retry_after=PENDING_RETRY_S,
                code="levels_pending",
            )
        return self._head

    @property
    def calibrated(self) -> bool:
        """Whether levels below 1.0 and focus can be served."""
        return self._head is not None

    @property
    def floor(self) -> float:
        """The lowest level that the model delivers; 1.0 before its first calibration."""
        return 1.0 if self._head is None else self._head.floor

    def check_served(self, modulation: Modulation) -> None:
        """Refuse what only a calibrated model can deliver.

        Raises:
            Unavailable: it is not calibrated yet.
        """
        if modulation.utility < 1.0 or modulation.focus:
            _ = self.head

    def fit(
        self,
        sample: CalibrationSample,
        secret: bytes,
        *,
        stored: Calibration | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Calibration:
        """Solve the levels on this installation's noise field. A text engine answers prompts of its own meanwhile.

        Args:
            sample: from `calibration_sample`.
            secret: the installation's noise secret.
            stored: a calibration whose field is kept, this model's for a refit, or another's of the same field.
            progress: called with the share done, 0 to 1.
        """
        tell = progress or (lambda _share: None)
        ell = self.spec.length_scale or self.scheme.length_scale
        scheme = replace(self.scheme, depth=self.depth, length_scale=ell)
        if sample.answered is None:
            return sample.solved(secret, self.fingerprint, scheme, field=stored, field_name=self.field, progress=tell)
        rough = replace(scheme, tolerance=COARSE)
        coarse = sample.solved(secret, self.fingerprint, rough, field=stored, field_name=self.field)
        self.uninstall()
        self.install(coarse, secret)
        try:
            answered = sample.answered(lambda share: tell(ANSWERING * share))
        finally:
            self.uninstall()
        return answered.solved(
            secret, self.fingerprint, scheme, field=coarse,
            progress=lambda share: tell(ANSWERING + (1.0 - ANSWERING) * share),
        )  # fmt: skip

    def install(self, calibration: Calibration, secret: bytes) -> None:
        """Put a calibration in place while serving: the first with its head, a refit along the same noise.

        From any thread but the forward's.

        Raises:
            ValueError: a calibration of another model, or of another noise field than the one in use.
        """
        if calibration.fingerprint != self.fingerprint:
            raise ValueError(f"calibration of {calibration.fingerprint}, but {self.model_id} is {self.fingerprint}")
        with self._installing:
            if self._head is None:
                features, classes = layer_shape(self.final)
                head = Head(
                    calibration, secret, features=features, classes=classes, slots=self.slots,
                    contention=self.scheme.contention, device=next(self.final.parameters()).device,
                )  # fmt: skip
                head.watched = True
                self._between(lambda: self._put(head))
            else:
                self._between(self._head.recalibrate(calibration))
                self.counts.forget()
                self._judged, self._expected = -1, {}

    def uninstall(self) -> None:
        """Take the head off: only level 1.0 can be answered from now on."""
        self._between(lambda: self._put(None))

    def _put(self, head: Head | None) -> None:
        detach(self.final)
        if head is not None:
            attach(self.final, head)
        self._head = head

    def keep(self, levels: Collection[float]) -> None:
        """Keep at hand what these levels need, which are sold, whatever others are asked for."""
        if self._head is not None:
            self._head.keep([level for level in levels if level < 1.0])

    def live_rows(self) -> Kept:
        """The live rows of half of the inputs, to refit on; `judge_live` judges by the other half.

        Raises:
            LoadError: too few of them.
        """
        if self.spec.refit is Refit.OFF:
            raise LoadError(f"{self.model_id} keeps no live rows to refit on: its `refit` is off; name a path")
        kept = self.live.kept()
        inputs, least = kept.inputs, 2 * self.least_live
        if inputs < least:
            raise LoadError(
                f"{self.model_id} has live rows of {inputs} inputs; a refit on them needs {least}: half to solve the"
                " levels on, half to judge them by"
            )
        return kept.solved().thinned(self.live_refitted)

    def judge_live(self) -> None:
        """Bring the expected levels up to the live rows of now that no refit is solved on; takes up to two seconds.

        A level whose matrix is not at hand, since others were used more lately, is judged once and then left alone.
        """
        if self._head is None:
            return
        with self._installing:
            levels = [level for level in self.audit() if level < 1.0]
            taken, used = self.live.taken, self._head.kept()
            if not levels or (taken == self._judged and set(levels) <= set(self._expected)):
                return
            kept = self.live.kept().held_out().fair(self.least_live).thinned(self.live_judged)
            if not len(kept.rows):
                return
            levels = [level for level in levels if level not in self._expected or max(level, self.floor) in used]
            self._expected, self._judged = self._expected | expected(*self.sample_of(kept), self._head, levels), taken

    def reports(self) -> list[LevelReport]:
        """Every level below 1.0 in use: what was delivered lately, and what is expected as of `judge_live`."""
        return self.counts.reports(self.audit(), self._expected)

    def audit(self) -> dict[float, tuple[int, int]]:
        """Since start, by level: positions judged (images, some pixels of a mask, decoding steps), and those whose
        answer after utility, before focus, equals the clean one."""
        return self.counts.totals()
