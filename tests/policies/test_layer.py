"""The modulated layer and its calibration, on layers with known logits."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from policies import Calibration, ModulatedLayer, RowTerms, focus_std
from policies.ladder import variance

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


@pytest.fixture
def layer(calibration: Calibration) -> ModulatedLayer:
    return ModulatedLayer(linear(), calibration, SECRET).requires_grad_(False)


def run(layer: ModulatedLayer, x: torch.Tensor, *rows: RowTerms) -> torch.Tensor:
    with torch.inference_mode(), layer.rows(rows if len(rows) > 1 else list(rows) * len(x)):
        return layer(x)


@pytest.mark.parametrize("level", [0.99, 0.9, 0.7, 0.5, 0.3])
def test_a_level_is_delivered_on_inputs_that_calibration_did_not_see(layer: ModulatedLayer, level: float) -> None:
    x = inputs(6000, seed=9)
    agreed = (run(layer, x, RowTerms(level)).argmax(dim=1) == layer.final(x).argmax(dim=1)).float().mean()
    # Sampling error of both samples; neighbours share noise, hence the factor.
    assert abs(float(agreed) - level) < 0.005 + 3.0 * math.sqrt(level * (1.0 - level) * (1 / 6000 + 1 / 4000))


def test_rows_at_full_utility_are_bit_identical_in_any_company(layer: ModulatedLayer) -> None:
    x = inputs(4)
    mixed = run(layer, x, RowTerms(1.0), RowTerms(0.7), RowTerms(0.9, {3: 0.9}), RowTerms(1.0))
    clean = layer.final(x)
    assert torch.equal(mixed[[0, 3]], clean[[0, 3]])
    assert not torch.equal(mixed[[1, 2]], clean[[1, 2]])


def test_a_batch_without_modulation_returns_the_layers_own_tensor(layer: ModulatedLayer) -> None:
    x = inputs(3)
    assert torch.equal(run(layer, x, RowTerms()), layer.final(x))
    assert layer.last is not None and layer.last.logits is layer.last.clean


def test_a_row_gets_the_same_answer_alone_and_in_a_mixed_batch(layer: ModulatedLayer) -> None:
    x, terms = inputs(5), [RowTerms(level, {2: -0.6}) for level in (0.5, 0.7, 0.9, 0.95, 1.0)]
    together = run(layer, x, *terms)
    for index, row in enumerate(terms):
        torch.testing.assert_close(run(layer, x[index : index + 1], row)[0], together[index], rtol=1e-5, atol=1e-5)


def test_a_restart_changes_nothing(layer: ModulatedLayer, calibration: Calibration) -> None:
    again = ModulatedLayer(linear(), Calibration.from_json(calibration.to_json()), SECRET).requires_grad_(False)
    x = inputs(50)
    assert torch.equal(run(layer, x, RowTerms(0.7)), run(again, x, RowTerms(0.7)))


def test_a_refit_moves_levels_along_the_same_noise(calibration: Calibration) -> None:
    x = inputs(3000, seed=5)
    refit = Calibration.fit(SECRET, "model", x, linear()(x).detach(), depth=128, field=calibration)
    one = calibration.ladder(SECRET, features=FEATURES, classes=CLASSES)
    other = refit.ladder(SECRET, features=FEATURES, classes=CLASSES)
    assert torch.equal(one.matrix(12_345), other.matrix(12_345))


def test_a_layer_takes_a_refit_in_place_and_keeps_a_positions_noise(layer: ModulatedLayer) -> None:
    blurred = 0.6 * inputs(3000, seed=5)
    old = layer.calibration
    refit = Calibration.fit(SECRET, "model", blurred, linear()(blurred).detach(), depth=128, field=old)

    def delivered() -> float:
        clean = layer.final(blurred).argmax(dim=1)
        return float((run(layer, blurred, RowTerms(0.7)).argmax(dim=1) == clean).float().mean())

    before, path = delivered(), layer.ladder.matrix(old.position(0.7))
    layer.recalibrate(refit)()
    assert abs(before - 0.7) > 0.05 and abs(delivered() - 0.7) < 0.005
    assert torch.equal(layer.matrix(0.7), layer.ladder.matrix(refit.position(0.7)))
    assert torch.equal(layer.ladder.matrix(old.position(0.7)), path)


@pytest.mark.parametrize("change", [{"length_scale": 9.0}, {"depth": 64}, {"block": 2}, {"metric": torch.eye(32)}])
def test_a_calibration_of_another_field_is_not_taken_in_place(layer: ModulatedLayer, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="noise field"):
        layer.recalibrate(replace(layer.calibration, **change))


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


def test_a_lower_level_tells_nothing_that_a_higher_one_does_not(layer: ModulatedLayer) -> None:
    """The best linear combination of two levels is the better level alone: its weight on the lower one vanishes."""
    x = inputs(20_000, seed=3)
    clean, high, low = layer.final(x), run(layer, x, RowTerms(0.9)), run(layer, x, RowTerms(0.7))
    design = torch.stack([high.flatten(), low.flatten()], dim=1)
    centred = design - design.mean(dim=0)
    weights = torch.linalg.lstsq(centred, (clean - clean.mean()).flatten()[:, None]).solution.flatten()
    assert abs(float(weights[1])) < 0.1
    assert float(weights[0]) > 0.7


@pytest.mark.parametrize("strength", [0.9, 0.4])
def test_favour_changes_a_typical_contended_row_with_the_chosen_probability(
    layer: ModulatedLayer, strength: float
) -> None:
    x = inputs(20_000, seed=4)
    clean = layer.final(x)
    second = clean.topk(2, dim=1).indices[:, 1]
    target = 3
    moved = run(layer, x, RowTerms(1.0, {target: strength}))
    contended = second == target
    won = (moved.argmax(dim=1) == target) & contended
    # At a margin of exactly the median the probability is the strength; over all margins it is near it.
    assert abs(float(won.sum() / contended.sum()) - strength) < 0.12
    assert torch.equal(moved[~contended], clean[~contended])


def test_avoid_acts_only_where_the_class_is_first(layer: ModulatedLayer) -> None:
    x = inputs(5000, seed=6)
    clean = layer.final(x)
    first = clean.argmax(dim=1) == 3
    moved = run(layer, x, RowTerms(1.0, {3: -0.9}))
    assert torch.equal(moved[~first], clean[~first])
    left = (moved.argmax(dim=1) == 3)[first].float().mean()
    assert float(left) < 0.35


def test_an_avoided_class_does_not_yield_to_another_avoided_one() -> None:
    layer = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.99, 0.0], [0.9, 0.0]]))
    x = torch.rand(300, 2) + 0.5
    calibration = Calibration("m", 1.0, 64, ((0, 1.0), (32768, 0.3)), (1.0,), (5.0,), 300)
    modulated = ModulatedLayer(layer, calibration, SECRET, contention=3)
    both = run(modulated, x, RowTerms(1.0, {0: -0.9, 1: -0.9})).argmax(dim=1)
    assert float((both == 2).float().mean()) > 0.6


def test_focus_std_hits_its_probability() -> None:
    delta = focus_std(0.8, 2.0)
    drawn = delta * torch.randn(200_000, generator=torch.Generator().manual_seed(0)).abs()
    assert float((drawn > 2.0).float().mean()) == pytest.approx(0.8, abs=0.01)
    assert focus_std(0.0, 2.0) == 0.0


@pytest.mark.parametrize(
    ("strength", "gap"), [(1.0, 1.0), (-0.995, 1.0), (math.nan, 1.0), (0.5, -1.0), (0.5, math.inf)]
)
def test_focus_std_refuses_what_it_cannot_mean(strength: float, gap: float) -> None:
    with pytest.raises(ValueError):
        focus_std(strength, gap)


def test_a_conv_layer_is_modulated_pixel_by_pixel(calibration: Calibration) -> None:
    conv, x = nn.Conv2d(FEATURES, CLASSES, 1), inputs(2 * 6 * 5).reshape(2, 6, 5, FEATURES).movedim(-1, 1)
    plain = linear()
    with torch.no_grad():
        conv.weight.copy_(plain.weight[:, :, None, None])
        conv.bias.copy_(plain.bias)
    layer = ModulatedLayer(conv, calibration, SECRET).requires_grad_(False)
    rows = ModulatedLayer(plain, calibration, SECRET).requires_grad_(False)
    maps = run(layer, x, RowTerms(0.7), RowTerms(1.0))
    flat = run(rows, x[0].reshape(FEATURES, -1).T, *[RowTerms(0.7)] * 30)
    torch.testing.assert_close(maps[0].reshape(CLASSES, -1).T, flat, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(maps[1], conv(x)[1], rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    levels=st.lists(st.sampled_from([1.0, 0.99, 0.9, 0.5]), min_size=1, max_size=8),
    focus=st.dictionaries(st.integers(0, CLASSES - 1), st.floats(-0.9, 0.9), max_size=3),
)
def test_shapes_and_dtypes_survive(
    calibration: Calibration, dtype: torch.dtype, levels: list[float], focus: dict[int, float]
) -> None:
    layer = ModulatedLayer(linear().to(dtype), calibration, SECRET).requires_grad_(False)
    x = inputs(len(levels)).to(dtype)
    out = run(layer, x, *[RowTerms(level, focus) for level in levels]) if len(levels) > 1 else layer(x)
    assert out.shape == (len(levels), CLASSES) and out.dtype == dtype and bool(torch.isfinite(out).all())


def test_terms_for_another_batch_size_are_refused(layer: ModulatedLayer) -> None:
    with layer.rows([RowTerms(0.7)]), pytest.raises(ValueError, match="batch of 3"):
        layer(inputs(3))


@pytest.mark.parametrize("row", [RowTerms(0.01), RowTerms(1.0, {CLASSES: 0.5}), RowTerms(1.0, {0: 0.995})])
def test_terms_out_of_range_are_refused(layer: ModulatedLayer, row: RowTerms) -> None:
    with pytest.raises(ValueError):
        layer.compile([row])


def test_only_final_layers_that_make_logits_are_wrapped(calibration: Calibration) -> None:
    with pytest.raises(TypeError, match="Conv2d"):
        ModulatedLayer(nn.Conv2d(3, 4, 3), calibration, SECRET)


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
