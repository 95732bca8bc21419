"""Gauges on Ray's Prometheus endpoint: what was sold against what was delivered, per (model, level)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray.util.metrics import Gauge

from policies.audit import LevelReport, State

TAGS = ("model", "level")


class LevelMetrics:
    """A replica's own view of its model's levels; Ray adds tags of the replica."""

    def __init__(self, model_id: str) -> None:
        self._model = model_id
        self._answers = Gauge(
            "aim_audit_answers", "Answers judged (images, some pixels of a mask, decoding steps).", tag_keys=TAGS
        )
        self._agreed = Gauge("aim_audit_agreement", "Share of answers that stay after utility.", tag_keys=TAGS)
        self._delivered = Gauge("aim_level_delivered", "The same of the recent answers, by level.", tag_keys=TAGS)
        self._expected = Gauge("aim_level_expected", "What a level delivers on the recent inputs.", tag_keys=TAGS)
        self._error = Gauge("aim_level_error", "Standard error of the surer of the two.", tag_keys=TAGS)
        self._drift = Gauge(
            "aim_level_drift", "1: off by more than 0.02; 0: holds; -1: too few answers to say.", tag_keys=TAGS
        )

    def export(self, totals: Mapping[float, tuple[int, int]], reports: Sequence[LevelReport]) -> None:
        """Set the gauges: answers and agreed answers since start, and every level's report."""
        for level, (answers, agreed) in totals.items():
            tags = self._tags(level)
            self._answers.set(answers, tags)
            self._agreed.set(agreed / max(1, answers), tags)
        for report in reports:
            tags = self._tags(report.level)
            if report.delivered.groups:
                self._delivered.set(report.delivered.level, tags)
            if report.expected.groups:
                self._expected.set(report.expected.level, tags)
            self._error.set(report.evidence.error, tags)
            self._drift.set({State.DRIFTED: 1, State.HOLDS: 0, State.OPEN: -1}[report.state], tags)

    def _tags(self, level: float) -> dict[str, str]:
        return {"model": self._model, "level": f"{level:g}"}
