"""The audit's statistics: standard errors between groups, the verdict on a level, windows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from policies.audit import LevelAudit, LevelReport, State, Tally, judge


def images(count: int, agreed: int) -> Tally:
    """Groups of one row each."""
    return Tally(count, count, agreed, agreed, agreed, count)


def test_error_of_single_rows_is_the_binomial_one() -> None:
    tally = images(2000, 1400)
    assert tally.level == 0.7
    assert tally.error == pytest.approx((0.7 * 0.3 / 2000) ** 0.5, rel=1e-3)
    assert tally == Tally.of_groups([1] * 2000, [1] * 1400 + [0] * 600)


def test_error_of_grouped_rows_is_that_between_groups() -> None:
    """Masks of 1,000 pixels that differ from each other: simulated, not the pixels' own tiny error."""
    rng = np.random.default_rng(0)
    levels, errors = [], []
    for _ in range(200):
        rows = rng.integers(500, 1500, 60)
        agreed = (rows * rng.normal(0.7, 0.1, 60).clip(0, 1)).astype(int)
        tally = Tally.of_groups(rows.tolist(), agreed.tolist())
        levels.append(tally.level)
        errors.append(tally.error)
    # 1/G = 0.017 is the least error; between groups it is 0.1 / sqrt(60) = 0.013.
    assert np.mean(errors) == pytest.approx(1 / 60, abs=0.001) and np.std(levels) < 1 / 60
    wide = [Tally.of_groups([1000] * 60, (1000 * rng.beta(0.7, 0.3, 60)).astype(int).tolist()) for _ in range(200)]
    assert np.mean([t.error for t in wide]) == pytest.approx(np.std([t.level for t in wide]), rel=0.15)


def test_groups_that_all_agree_do_not_prove_a_level_of_one() -> None:
    assert images(100, 100).error == 0.01
    assert judge(0.99, images(100, 100)) is State.HOLDS


@pytest.mark.parametrize(
    ("rows", "agreed", "state"),
    [
        (40, 0, State.OPEN),  # however far off, 40 rows are too few
        (300, 204, State.OPEN),
        (3000, 2040, State.HOLDS),  # 0.68, within 0.02
        (3000, 2010, State.HOLDS),  # 0.67: off by more, but not surely
        (4000, 2500, State.DRIFTED),  # 0.625
        (4000, 3100, State.DRIFTED),  # too good is drift too
        (200, 90, State.DRIFTED),  # a large one is seen soon
    ],
)
def test_verdict_on_a_level_of_0_7(rows: int, agreed: int, state: State) -> None:
    assert judge(0.7, images(rows, agreed)) is state


def test_a_level_that_holds_is_seldom_called_drifted() -> None:
    """4,000 rows, a level that is off by the 0.01 of a calibration: 2,000 looks."""
    rng = np.random.default_rng(1)
    looks = [judge(0.7, images(4000, int(n))) for n in rng.binomial(4000, 0.69, 2000)]
    assert looks.count(State.DRIFTED) <= 2
    shifted = [judge(0.7, images(4000, int(n))) for n in rng.binomial(4000, 0.64, 2000)]
    assert shifted.count(State.DRIFTED) > 1900


def test_a_level_has_drifted_where_either_tally_says_so() -> None:
    good, off, few = images(4000, 2800), images(4000, 2400), images(60, 42)
    assert LevelReport(0.7, few, off).state is State.DRIFTED
    assert LevelReport(0.7, off, good).state is State.DRIFTED
    assert LevelReport(0.7, off, good).evidence is off
    assert LevelReport(0.7, few, good).state is State.HOLDS and LevelReport(0.7, few, good).evidence is good
    assert LevelReport(0.7, few, Tally()).state is State.OPEN


def test_replicas_add_up_and_travel_as_json() -> None:
    tally = images(30, 20) + Tally.of(1000, 700)
    assert (tally.groups, tally.answers, tally.agreed) == (31, 1030, 720)
    assert Tally.from_list(json.loads(json.dumps(tally.to_list()))) == tally
    for wrong in ([], [1, 2, 3], [1, 5, 6, 0, 0, 0], [9, 5, 5, 0, 0, 0]):
        with pytest.raises(ValueError, match="tally"):
            Tally.from_list(wrong)


def test_recent_answers_are_a_window_and_are_forgotten_when_levels_move() -> None:
    audit = LevelAudit(window=10)
    for number in range(25):
        audit.count(0.7, 4, 3)
        audit.finish(0.7, 4, 4 if number >= 20 else 0, source=number)
        audit.finish(0.7, 4, 4, source=number)  # the same input again
    audit.count(1.0, 1, 1)
    audit.finish(1.0, 1, 1, source=0)
    assert audit.totals() == {0.7: (100, 75), 1.0: (1, 1)}
    assert audit.recent() == {0.7: Tally.of_groups([4] * 15, [0] * 10 + [4] * 5)}
    assert [report.level for report in audit.reports(audit.totals(), {})] == [0.7]
    audit.forget()
    assert audit.recent() == {}
    assert audit.reports([0.7], {0.7: images(5, 4)}) == [LevelReport(0.7, Tally(), images(5, 4))]
