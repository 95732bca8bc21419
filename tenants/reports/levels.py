"""What the replicas of a model sold and delivered, those of one calibration together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policies.audit import LevelReport, State, Tally
from tenants.reports.replicas import ReplicaReport


@dataclass(frozen=True)
class ServedLevels:
    """What those replicas of a model that serve one and the same calibration say together.

    Attributes:
        calibration, version: which, as in `ReplicaReport`.
        replicas: how many.
        behind: whether others have a later refit of the same calibration.
        levels: by rising level.
        alone: whether no replica of the model serves another calibration.
        field: name of their noise field.
        note: why a level that drifted is not solved anew by itself now; "" where none is, or it is an admin's to ask.
    """

    calibration: str
    version: int
    replicas: int
    behind: bool
    levels: tuple[LevelReport, ...]
    alone: bool
    field: str = ""
    note: str = ""

    def __str__(self) -> str:
        count = "1 replica" if self.replicas == 1 else f"{self.replicas} replicas"
        which = "" if self.alone else f", calibration {self.calibration} version {self.version}"
        return count + which + (", behind" if self.behind else "")


def merged(reports: Sequence[ReplicaReport]) -> list[ServedLevels]:
    """The replicas of a model, those of one calibration together: by key, the later refit first.

    Levels of different calibrations lie at different noise, so their counts say nothing together.
    """
    groups: dict[tuple[str, int], list[ReplicaReport]] = {}
    for report in sorted(reports, key=lambda report: (report.calibration, -report.version)):
        groups.setdefault((report.calibration, report.version), []).append(report)
    newest: dict[str, int] = {}
    for key, version in groups:
        newest.setdefault(key, version)
    return [
        ServedLevels(
            key,
            version,
            len(group),
            version < newest[key],
            _sum(group),
            len(groups) == 1,
            group[0].field,
            note=next((report.note for report in group if report.note), ""),
        )  # fmt: skip
        for (key, version), group in groups.items()
    ]


def _sum(reports: Sequence[ReplicaReport]) -> tuple[LevelReport, ...]:
    levels: dict[float, LevelReport] = {}
    for report in reports:
        for level in report.levels:
            levels[level.level] = levels[level.level] + level if level.level in levels else level
    return tuple(levels[level] for level in sorted(levels))


def drifted(reports: Mapping[str, Sequence[ReplicaReport]]) -> list[tuple[str, ServedLevels, LevelReport]]:
    """The levels that have drifted, by model, and the replicas at which they have."""
    return [
        (model, group, level)
        for model in sorted(reports)
        for group in merged(reports[model])
        for level in group.levels
        if level.state is State.DRIFTED
    ]


def level_fields(group: ServedLevels, report: LevelReport) -> dict[str, Any]:
    """A level of some replicas for programs."""

    def fields(tally: Tally) -> dict[str, Any] | None:
        if not tally.groups:
            return None
        counts = {"inputs": tally.groups, "answers": tally.answers}
        return {"level": round(tally.level, 4), "error": round(tally.error, 4), **counts}

    state = report.state.name.lower()
    return {
        "level": report.level,
        "state": state,
        "delivered": fields(report.delivered),
        "expected": fields(report.expected),
        "field": group.field,
        "calibration": group.calibration,
        "version": group.version,
        "replicas": group.replicas,
        "behind": group.behind,
        "note": group.note,
    }
