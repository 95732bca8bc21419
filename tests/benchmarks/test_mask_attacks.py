"""Attacks on masks, on small scenes whose right answers are known."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attacks.mask_attack import MaskAttack
from benchmarks.attacks.mask_encoders import OWN, Cells, Encoded, sampled_cells
from benchmarks.attacks.mask_features import OTHER, SAME, VOID, Scene, Scenes
from benchmarks.attacks.mask_levels import MaskLevels, answered
from benchmarks.attacks.mask_segmenter import trained
from benchmarks.attacks.mask_sources import labels_of
from benchmarks.attacks.mask_students import MaskStudents
from policies.attacks.learners import linear

CLASSES, CELL = 3, 4
HEIGHT, WIDTH = 48, 64
GRID = (HEIGHT // CELL, WIDTH // CELL)


def scene(number: int) -> Scene:
    """Blobs of three classes; the model is right but at their borders, where its logits are interpolated."""
    generator = torch.Generator().manual_seed(number)
    logits = 6.0 * F.interpolate(torch.randn(1, CLASSES, 3, 4, generator=generator), GRID, mode="bilinear")
    truth = F.interpolate(logits, (HEIGHT, WIDTH), mode="bilinear")[0].argmax(dim=0)
    picture = torch.randint(256, (HEIGHT, WIDTH, 3), generator=generator, dtype=torch.uint8)
    return Scene(picture, truth, logits, logits)


@cache
def data() -> Scenes:
    return Scenes([scene(n) for n in range(6)], [scene(n) for n in range(10, 18)], [scene(n) for n in range(20, 28)])


@cache
def pictures() -> list[Scene]:
    return [scene(n) for n in range(40, 70)]


def encoded() -> Encoded:
    """Through an encoder that sees the clean logits."""

    def maps(scenes: list[Scene]) -> Tensor:
        return torch.cat([one.logits for one in scenes])

    known = {OTHER: maps(data().foreign), SAME: maps(data().examples)}
    labelled = {drive: sampled_cells([values], 50, WIDTH) for drive, values in known.items()}
    return Encoded(sampled_cells([maps(pictures())], 60, WIDTH), labelled, known | {"judged": maps(data().judged)})


def independent(scene: Scene, queries: slice, level: float) -> Tensor:
    """Noise of its own for every cell and level."""
    generator = torch.Generator().manual_seed(int(scene.logits.abs().sum() * 1000) + int(level * 100))
    return scene.logits[queries] + 5.0 * torch.randn(scene.logits[queries].shape, generator=generator)


def turned(scene: Scene, queries: slice, level: float) -> Tensor:
    """The same wrong class in place of another, at all levels."""
    return scene.logits[queries][:, [0, 2, 1]]


def attack(noise: object) -> MaskAttack:
    return MaskAttack([noise], data(), [])  # type: ignore[list-item]


def students(noise: object) -> MaskStudents:
    return MaskStudents(attack(noise), pictures(), {OWN: encoded()})


def test_cells_are_read_at_their_middle_and_void_is_left_out() -> None:
    numbers = torch.arange(float(GRID[0] * GRID[1])).reshape(1, 1, *GRID)
    cells = sampled_cells([numbers], 20, WIDTH)
    assert torch.equal(cells.x[0, :, 0], cells.at[0] // WIDTH // CELL * GRID[1] + cells.at[0] % WIDTH // CELL)
    mask = torch.full((1, HEIGHT, WIDTH), VOID)
    mask.view(-1)[cells.at[0, 3]] = 2
    x, y = cells.known(cells.read(mask))
    assert (x.tolist(), y.tolist()) == ([[float(cells.x[0, 3, 0])]], [2])
    more = Cells(cells.x.expand(2, -1, -1), cells.at.expand(2, -1))
    assert len(more.known(torch.zeros(2, 20), pictures=1)[1]) == 20


def test_a_student_wins_back_independent_noise_and_learns_what_is_wrong_everywhere() -> None:
    fresh, wrong = students(independent), students(turned)
    assert attack(independent).single() < 0.8
    assert attack(independent).share(fresh.fitted(OWN, linear)) > 0.8
    assert abs(attack(turned).share(wrong.fitted(OWN, linear))) < 0.1
    assert abs(attack(turned).share(wrong.with_answer(OWN))) < 0.1


def test_labels_of_its_own_tell_a_student_what_is_wrong_everywhere() -> None:
    wrong = students(turned)
    assert attack(turned).share(wrong.in_corrector(OWN, OTHER)) > 0.9
    assert attack(turned).share(wrong.labels_alone(OWN, OTHER)) > 0.9
    assert wrong.fitted(OWN, linear, OTHER) != wrong.fitted(OWN, linear)


def test_levels_with_one_noise_tell_no_more_than_the_highest() -> None:
    assert attack(turned).share(MaskLevels(attack(turned)).vote()) == 0.0
    assert attack(independent).share(MaskLevels(attack(independent)).vote()) > 0.4


def test_gold_answers_take_the_place_of_labels() -> None:
    blank = Scene(scene(0).picture, torch.full((HEIGHT, WIDTH), VOID), scene(0).means, scene(0).logits)
    assert torch.equal(answered(blank).truth, labels_of(scene(0).logits, scene(0))[0])
    rows = MaskLevels(attack(turned)).gold_rows()
    own = next(run for name, run in rows.items() if OTHER in name and "own answers" in name)
    assert attack(turned).share(own()) == pytest.approx(1.0, abs=0.05)


def test_a_segmenter_learns_classes_from_colours() -> None:
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(CLASSES, (24, 3, 4), generator=generator)
    colours = F.one_hot(small, CLASSES).movedim(-1, 1).float()
    x, y = F.interpolate(colours, (24, 32)), F.interpolate(colours, (12, 16))
    student = trained(x[:16], y[:16], 60)
    with torch.no_grad():
        right = (student(x[16:]).argmax(dim=1) == y[16:].argmax(dim=1)).float().mean()
    assert float(right) > 0.9
