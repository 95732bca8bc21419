"""Which position delivers which level: solved, stored, refitted."""

from pathlib import Path

import pytest
import torch
from torch import nn

from policies import Calibration
from policies.field.variance import variance

SECRET = b"the secret of this installation"
FEATURES, CLASSES = 32, 10


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(FEATURES, CLASSES)


def inputs(count: int, seed: int = 1) -> torch.Tensor:
    return 4.0 * torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    x = inputs(4000)
    return Calibration.fit(SECRET, "model", x, linear()(x).detach(), depth=128)


def test_a_refit_moves_levels_along_the_same_noise(calibration: Calibration) -> None:
    x = inputs(3000, seed=5)
    refit = Calibration.fit(SECRET, "model", x, linear()(x).detach(), depth=128, field=calibration)
    one = calibration.ladder(SECRET, features=FEATURES, classes=CLASSES)
    other = refit.ladder(SECRET, features=FEATURES, classes=CLASSES)
    assert torch.equal(one.matrix(12_345), other.matrix(12_345))


def test_levels_are_ordered_along_the_path(calibration: Calibration) -> None:
    levels = [level / 100 for level in range(100, round(calibration.floor * 100) - 1, -1)]
    positions = [calibration.position(level) for level in levels]
    assert positions[0] == 0
    assert all(a < b for a, b in zip(positions, positions[1:], strict=False))


def test_every_level_is_met_on_the_sample_that_solved_it_however_rough_the_path() -> None:
    """A smooth field among few classes: the path falls and rises again, so levels are met where it was measured."""
    x = inputs(2000)
    logits = linear()(x).detach()
    for secret in (SECRET, b"another secret of an installation"):
        solved = Calibration.fit(secret, "model", x, logits, depth=16, relative_length_scale=2.0)
        ladder = solved.ladder(secret, features=FEATURES, classes=CLASSES)
        for level in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
            noisy = logits + ladder.phi(x) @ ladder.matrix(solved.position(level))
            agreed = float((noisy.argmax(dim=1) == logits.argmax(dim=1)).float().mean())
            # One position of so rough a field is up to 0.012 away from the next.
            assert agreed == pytest.approx(level, abs=0.015)


def test_where_the_path_rose_again_a_level_is_where_it_first_falls() -> None:
    curve = ((0, 1.0), (10_000, 0.71), (12_000, 0.71), (12_100, 0.68), (14_000, 0.68), (15_000, 0.677), (16_000, 0.6))
    calibration = Calibration("m", 1.0, 64, curve, (1.0,), (1.0,), 300)
    assert calibration.position(0.71) == 10_000
    assert 12_000 < calibration.position(0.7) < 12_100
    assert calibration.position(0.68) == 12_100 and calibration.position(0.679) == 12_100
    assert calibration.position(0.678) == 15_000


def test_a_level_that_no_small_noise_delivers_is_not_clean() -> None:
    curve = ((0, 1.0), (5_000, 1.0), (6_000, 0.998), (10_000, 0.9))
    calibration = Calibration("m", 1.0, 64, curve, (1.0,), (1.0,), 300)
    assert 5_000 < calibration.position(0.999) < 6_000


def test_within_a_cell_answers_lost_grow_with_the_scale_of_the_noise() -> None:
    """Positions are the logarithm of the scale: lost answers that follow it exactly are met exactly."""
    curve = ((0, 1.0), (10_000, 0.998), (14_000, 0.968), (20_000, 0.4))
    calibration = Calibration("m", 1.0, 64, curve, (1.0,), (1.0,), 300)
    assert calibration.position(0.998) == 10_000 and calibration.position(0.968) == 14_000
    assert calibration.position(1.0 - 0.008) == 12_000
    assert calibration.position(0.999) == 5_000


def test_a_calibration_survives_its_file(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == calibration


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fingerprint": "x"}'])
def test_junk_is_no_calibration(text: str) -> None:
    with pytest.raises(ValueError, match="calibration"):
        Calibration.from_json(text)


def test_too_few_rows_do_not_calibrate() -> None:
    x = inputs(50)
    with pytest.raises(ValueError, match="100 rows"):
        Calibration.fit(SECRET, "model", x, linear()(x).detach(), depth=32)


def test_the_position_of_a_level_is_where_its_variance_lies(calibration: Calibration) -> None:
    assert variance(calibration.position(0.9)) < variance(calibration.position(0.7))


def test_inputs_that_a_model_does_not_tell_apart_are_refused_in_words() -> None:
    x = inputs(1).expand(200, -1).contiguous()
    with pytest.raises(ValueError, match="sees no difference between the calibration inputs"):
        Calibration.fit(SECRET, "model", x, linear()(x).detach(), depth=128)
