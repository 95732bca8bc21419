"""Sold against delivered: how often answers at a level are the clean ones, how surely, and whether the level drifted.

Pure arithmetic, without torch: replicas count, the `tenants` command adds the replicas up and judges.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

WITHIN = 0.02
"""A level may be off by so much before it counts as drifted: calibration itself is exact to about 0.01."""
DEVIATIONS = 3.0
"""Standard errors beyond it, since every replica is judged again and again."""
SURE = 0.01
"""Standard error from which on a level that shows no drift is said to hold."""
MIN_GROUPS = 50
WINDOW = 2048
"""Groups of a level after which the oldest as many are forgotten."""


class State(StrEnum):
    """What can be said of a level."""

    HOLDS = "holds"
    DRIFTED = "drifted"
    OPEN = "too few answers"


@dataclass(frozen=True)
class Tally:
    """Rows and how many of them agree with the clean answer, in groups that are independent of each other.

    A group is what one input gave: an image, the pixels of a mask, the steps of a stream. They are alike, so the
    standard error is taken between groups (the ratio estimator for clusters, Cochran, Sampling Techniques, 6.5).

    Attributes:
        groups: G.
        answers, agreed: sums of n_g and a_g over the groups.
        agreed2, product, answers2: sums of a_g^2, a_g n_g and n_g^2.
    """

    groups: int = 0
    answers: int = 0
    agreed: int = 0
    agreed2: int = 0
    product: int = 0
    answers2: int = 0

    @classmethod
    def of(cls, answers: int, agreed: int) -> Tally:
        """One group."""
        return cls(1, answers, agreed, agreed * agreed, agreed * answers, answers * answers)

    @classmethod
    def of_groups(cls, answers: Sequence[int], agreed: Sequence[int]) -> Tally:
        """Several groups: n_g and a_g of each."""
        pairs = [(n, a) for n, a in zip(answers, agreed, strict=True) if n]
        squares = (sum(a * a for _, a in pairs), sum(a * n for n, a in pairs), sum(n * n for n, _ in pairs))
        return cls(len(pairs), sum(n for n, _ in pairs), sum(a for _, a in pairs), *squares)

    @classmethod
    def from_list(cls, numbers: Sequence[int]) -> Tally:
        """Parse what `to_list` gave.

        Raises:
            ValueError: not six numbers of answers that can be.
        """
        tally = cls(*map(int, numbers)) if len(numbers) == 6 else cls(-1)
        if not 0 <= tally.agreed <= tally.answers or not 0 <= tally.groups <= tally.answers:
            raise ValueError(f"not a tally: {list(numbers)}")
        return tally

    def to_list(self) -> list[int]:
        """The six numbers, for JSON."""
        return [self.groups, self.answers, self.agreed, self.agreed2, self.product, self.answers2]

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(mine + theirs for mine, theirs in zip(self.to_list(), other.to_list(), strict=True)))

    def __sub__(self, other: Tally) -> Tally:
        """Without some of the groups."""
        return Tally(*(mine - theirs for mine, theirs in zip(self.to_list(), other.to_list(), strict=True)))

    @property
    def level(self) -> float:
        """Share of the answers that agree; 1.0 of none."""
        return self.agreed / self.answers if self.answers else 1.0

    @property
    def error(self) -> float:
        """Standard error of `level`, at least 1/G (rule of three: groups that all agree prove no level of 1)."""
        if self.groups < 2:
            return 1.0
        p = self.level
        squares = self.agreed2 - 2.0 * p * self.product + p * p * self.answers2
        clustered = math.sqrt(max(0.0, squares) * self.groups / (self.groups - 1)) / self.answers
        return min(1.0, max(clustered, 1.0 / self.groups))


def judge(level: float, tally: Tally) -> State:
    """Whether a sold level is delivered: drifted where it is off by more than 0.02 beyond three standard errors."""
    if tally.groups < MIN_GROUPS:
        return State.OPEN
    if abs(tally.level - level) > WITHIN + DEVIATIONS * tally.error:
        return State.DRIFTED
    return State.HOLDS if tally.error <= SURE else State.OPEN


@dataclass(frozen=True)
class LevelReport:
    """One level of one model, since it was last calibrated.

    Attributes:
        level: sold.
        delivered: the recent answers at this level, as the layer itself counted them.
        expected: what the level delivers on recent inputs of all levels, on the noise field in use.
    """

    level: float
    delivered: Tally
    expected: Tally

    def __add__(self, other: LevelReport) -> LevelReport:
        return LevelReport(self.level, self.delivered + other.delivered, self.expected + other.expected)

    @property
    def state(self) -> State:
        """Drifted where either says so; holding where either is sure of it."""
        states = {judge(self.level, self.delivered), judge(self.level, self.expected)}
        return next(state for state in (State.DRIFTED, State.HOLDS, State.OPEN) if state in states)

    @property
    def evidence(self) -> Tally:
        """The tally that the state rests on: of those that say it, the one that is surer."""
        return min(
            (self.delivered, self.expected),
            key=lambda tally: (judge(self.level, tally) is not self.state, tally.error),
        )


class LevelAudit:
    """Counts a replica's answers by level: in all since the start, and the recent ones. Safe from any thread."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._lock = threading.Lock()
        self._totals: dict[float, tuple[int, int]] = {}
        self._recent: dict[float, tuple[Tally, Tally]] = {}
        self._sources: dict[float, set[int]] = {}

    def count(self, level: float, answers: int, agreed: int) -> None:
        """Rows answered, which may be a part of a group."""
        with self._lock:
            before = self._totals.get(level, (0, 0))
            self._totals[level] = (before[0] + answers, before[1] + agreed)

    def finish(self, level: float, answers: int, agreed: int, source: int) -> None:
        """A whole group, whose answers were counted before. Of level 1.0 there is nothing to judge.

        Args:
            source: a hash of the input. One that comes again is answered alike, and says nothing new.
        """
        if level == 1.0 or not answers:
            return
        with self._lock:
            sources = self._sources.setdefault(level, set())
            if source in sources:
                return
            older, newer = self._recent.get(level, (Tally(), Tally()))
            if newer.groups >= self._window:
                older, newer = newer, Tally()
                sources.clear()
            sources.add(source)
            self._recent[level] = (older, newer + Tally.of(answers, agreed))

    def forget(self) -> None:
        """Levels have moved: what was answered before says nothing of them."""
        with self._lock:
            self._recent.clear()
            self._sources.clear()

    def totals(self) -> dict[float, tuple[int, int]]:
        """By level, since start: answers, and those that agreed."""
        with self._lock:
            return dict(self._totals)

    def recent(self) -> dict[float, Tally]:
        """By level below 1.0: the last 2,048 to 4,096 groups."""
        with self._lock:
            return {level: older + newer for level, (older, newer) in self._recent.items()}

    def reports(self, levels: Iterable[float], expected: Mapping[float, Tally]) -> list[LevelReport]:
        """Of each of these levels below 1.0, by rising level."""
        recent, below = self.recent(), sorted(level for level in levels if level < 1.0)
        return [LevelReport(level, recent.get(level, Tally()), expected.get(level, Tally())) for level in below]
