"""What a head keeps, builds and holds of the matrices of its levels."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from policies import Head, Setting
from policies.head.levels import Levels
from tests.policies.head.levels_support import BYTES, CALIBRATION, CLASSES, DEPTH, FEATURES, SECRET


def head_of(limit: int) -> Head:
    made = Head(CALIBRATION, SECRET, features=FEATURES, classes=CLASSES, slots=4)
    made._matrices = Levels(made.ladder, torch.device("cpu"), limit)
    return made


def built(head: Head, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions that are built from now on."""
    build, found = head.ladder.matrix, []

    def counted(position: int) -> Tensor:
        found.append(position)
        return build(position)

    monkeypatch.setattr(head.ladder, "matrix", counted)
    return found


LEVELS = [level / 100 for level in range(10, 100)]


def test_a_head_that_has_answered_at_every_level_keeps_few_matrices() -> None:
    head = head_of(5 * BYTES)
    for level in LEVELS:
        for future in head.prepare(Setting(level)):
            future.result()
    assert head.kept() == LEVELS[-5:]


def test_a_head_keeps_what_is_sold_at_its_place_of_each_refit(monkeypatch: pytest.MonkeyPatch) -> None:
    head = head_of(2 * BYTES)
    head.keep([0.9, 0.5])
    for level in LEVELS:
        head.prepare(Setting(level))[0].result()
    assert {0.9, 0.5} <= set(head.kept()) and len(head.kept()) == 4
    refit = replace(CALIBRATION, curve=((0, 1.0), (15_000, 0.9), (17_000, 0.1)))
    head.recalibrate(refit)()
    found = built(head, monkeypatch)
    for level in LEVELS:
        head.prepare(Setting(level))[0].result()
        assert {0.9, 0.5} <= set(head.kept())
    assert refit.position(0.9) not in found and refit.position(0.5) not in found


def test_a_batch_at_more_levels_than_are_kept_is_answered_as_by_an_unbounded_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bounded, free = head_of(2 * BYTES), head_of(2**20)
    x, clean = torch.randn(len(LEVELS), FEATURES), torch.randn(len(LEVELS), CLASSES)
    for head in (bounded, free):
        head.write_all([Setting(level) for level in LEVELS])
    for level in (0.3, 0.4, 0.5):
        bounded.prepare(Setting(level))[0].result()
    # Neither a batch that is under way nor a graph that is replayed can build, or lose, a matrix.
    monkeypatch.setattr(bounded.ladder, "matrix", lambda _: pytest.fail("built within the forward"))
    got, wanted = (head(x, clean, head.slots_of(len(x))).logits for head in (bounded, free))
    assert torch.equal(got, wanted)


def test_who_holds_what_it_prepared_is_seated_without_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence that waits for its seat, whatever others ask for meanwhile."""
    head = head_of(2 * BYTES)
    held = head.prepare(Setting(0.55, {1: 0.5}))
    for future in held:
        future.result()
    for level in LEVELS:
        if level != 0.55:
            head.prepare(Setting(level))[0].result()
    found = built(head, monkeypatch)
    head.write(2, Setting(0.55, {1: 0.5}))
    assert not found and len(held) == 2


def test_a_refit_builds_what_is_kept_and_in_use_and_the_rest_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = head_of(3 * BYTES)
    head.write(0, Setting(0.2))
    for level in LEVELS:
        head.prepare(Setting(level))[0].result()
    found = built(head, monkeypatch)
    refit = replace(CALIBRATION, curve=((0, 1.0), (15_000, 0.9), (17_000, 0.1)))
    adopt = head.recalibrate(refit)
    assert set(found) == {refit.position(level) for level in (0.2, *LEVELS[-3:])}
    count = len(found)
    adopt()
    assert len(found) == count and head.levels.position(0) == refit.position(0.2)
    assert head.matrix_at(refit.position(0.5)).shape == (DEPTH, CLASSES)
    assert found[count:] == [refit.position(0.5)]


def test_a_head_survives_torch_save_while_its_builder_runs() -> None:
    head = head_of(3 * BYTES)
    head.write_all([Setting(0.5), Setting(0.7, {2: 0.5})])
    head.prepare(Setting(0.3))
    file = io.BytesIO()
    torch.save(head, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    x, clean = torch.randn(2, FEATURES), torch.randn(2, CLASSES)
    one, other = (h(x, clean, h.slots_of(2)).logits for h in (head, again))
    assert torch.equal(one, other)
    again.write(3, Setting(0.3))
    assert again.levels.position(3) == head.position(Setting(0.3))
