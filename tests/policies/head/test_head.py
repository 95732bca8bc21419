"""The head on layers with known logits: what is delivered, and to whom."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from policies import Calibration, Head, Setting, attach

SECRET = b"the secret of this installation"
FEATURES, CLASSES = 32, 10


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(FEATURES, CLASSES).requires_grad_(False)


def inputs(count: int, seed: int = 1) -> torch.Tensor:
    return 4.0 * torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    x = inputs(4000)
    return Calibration.fit(SECRET, "model", x, linear()(x), depth=128)


def head_of(calibration: Calibration, classes: int = CLASSES, **options: int) -> Head:
    return Head(calibration, SECRET, features=FEATURES, classes=classes, slots=8, **options)


def modulated(calibration: Calibration) -> nn.Linear:
    layer = linear()
    attach(layer, head_of(calibration))
    return layer


@pytest.fixture
def layer(calibration: Calibration) -> nn.Linear:
    return modulated(calibration)


def run(layer: nn.Module, x: torch.Tensor, *items: Setting) -> torch.Tensor:
    """Answers at a setting each, or all at one."""
    head = layer.get_submodule("modulation")
    assert isinstance(head, Head)
    if len(items) == 1:
        head.write_everyone(items[0])
    else:
        head.write_all(items)
    with torch.inference_mode():
        return layer(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("level", [0.99, 0.9, 0.7, 0.5, 0.3])
def test_a_level_is_delivered_on_inputs_that_calibration_did_not_see(layer: nn.Linear, level: float) -> None:
    x = inputs(6000, seed=9)
    agreed = (run(layer, x, Setting(level)).argmax(dim=1) == linear()(x).argmax(dim=1)).float().mean()
    # Sampling error of both samples; neighbours share noise, hence the factor.
    assert abs(float(agreed) - level) < 0.005 + 3.0 * math.sqrt(level * (1.0 - level) * (1 / 6000 + 1 / 4000))


def test_rows_at_full_utility_are_bit_identical_in_any_company(layer: nn.Linear) -> None:
    x = inputs(4)
    mixed = run(layer, x, Setting(1.0), Setting(0.7), Setting(0.9, {3: 0.9}), Setting(1.0))
    clean = linear()(x)
    assert torch.equal(mixed[[0, 3]], clean[[0, 3]])
    assert not torch.equal(mixed[[1, 2]], clean[[1, 2]])


def test_a_batch_without_modulation_returns_the_layers_own_tensor(layer: nn.Linear) -> None:
    x = inputs(3)
    assert torch.equal(run(layer, x, Setting()), linear()(x))
    head, logits = layer.modulation, linear()(x)
    answer = head(x, logits, head.slots_of(3))
    assert answer.logits is answer.utility is answer.clean is logits


def test_a_row_gets_the_same_answer_alone_and_in_a_mixed_batch(layer: nn.Linear) -> None:
    x, items = inputs(5), [Setting(level, {2: -0.6}) for level in (0.5, 0.7, 0.9, 0.95, 1.0)]
    together = run(layer, x, *items)
    for index, item in enumerate(items):
        torch.testing.assert_close(run(layer, x[index : index + 1], item)[0], together[index], rtol=1e-5, atol=1e-5)


def test_a_restart_changes_nothing(layer: nn.Linear, calibration: Calibration) -> None:
    again = modulated(Calibration.from_json(calibration.to_json()))
    x = inputs(50)
    assert torch.equal(run(layer, x, Setting(0.7)), run(again, x, Setting(0.7)))


def test_a_lower_level_tells_nothing_that_a_higher_one_does_not(layer: nn.Linear) -> None:
    """The best linear combination of two levels is the better level alone: its weight on the lower one vanishes."""
    x = inputs(20_000, seed=3)
    clean, high, low = linear()(x), run(layer, x, Setting(0.9)), run(layer, x, Setting(0.7))
    design = torch.stack([high.flatten(), low.flatten()], dim=1)
    centred = design - design.mean(dim=0)
    weights = torch.linalg.lstsq(centred, (clean - clean.mean()).flatten()[:, None]).solution.flatten()
    assert abs(float(weights[1])) < 0.1
    assert float(weights[0]) > 0.7


def test_a_conv_layer_is_modulated_pixel_by_pixel(calibration: Calibration) -> None:
    x = inputs(2 * 6 * 5).reshape(2, 6, 5, FEATURES).movedim(-1, 1)
    conv, plain = nn.Conv2d(FEATURES, CLASSES, 1).requires_grad_(False), linear()
    conv.weight.copy_(plain.weight[:, :, None, None])
    assert conv.bias is not None
    conv.bias.copy_(plain.bias)
    clean = conv(x)
    attach(conv, head_of(calibration))
    maps = run(conv, x, Setting(0.7), Setting(1.0))
    flat = run(modulated(calibration), x[0].reshape(FEATURES, -1).T, Setting(0.7))
    torch.testing.assert_close(maps[0].reshape(CLASSES, -1).T, flat, rtol=1e-4, atol=1e-4)
    assert torch.equal(maps[1], clean[1])


def test_items_of_a_map_keep_their_answers_in_any_company(calibration: Calibration) -> None:
    """Whether a CPU looks at the modulated items alone, from the first to the last, or at all."""
    head, x = head_of(replace(calibration, block=2)), torch.randn(5, FEATURES, 5, 7)
    logits = torch.randn(5, CLASSES, 5, 7)
    items = [Setting(), Setting(0.7), Setting(), Setting(1.0, {3: 0.9}), Setting()]
    head.write_all(items)
    some = head(x, logits, head.slots_of(5))
    everyone = head._maps(x, logits, head.slots_of(5))
    for stage in ("logits", "clean", "utility"):
        assert torch.equal(getattr(some, stage), getattr(everyone, stage))
    assert some.clean is logits
    assert torch.equal(some.logits[[0, 2, 4]], logits[[0, 2, 4]]) and torch.equal(some.utility[2:], logits[2:])
    assert not torch.equal(some.logits[1], logits[1]) and not torch.equal(some.logits[3], logits[3])
    nobody = head(x[:2], logits[:2], torch.tensor([0, head.slots]))
    assert torch.equal(nobody.logits, logits[:2])


def test_more_items_than_slots_make_more_slots(calibration: Calibration) -> None:
    head, x = head_of(calibration), inputs(20)
    items = [Setting(1.0 if i % 2 else 0.7, {1: 0.5} if i == 3 else {}) for i in range(20)]
    logits = linear()(x)
    head.write_all(items)
    out = head(x, logits, head.slots_of(20)).logits
    assert head.slots == 20 and head.levels.cell.shape == (21,)
    assert torch.equal(out[5::2], logits[5::2]) and bool((out[::2] != logits[::2]).any(dim=1).all())
    head.write_all(items[:3])
    torch.testing.assert_close(head(x[:3], logits[:3], head.slots_of(3)).logits, out[:3], rtol=1e-5, atol=1e-5)
    assert head.slots == 20, "slots stay"


def test_a_setting_by_position_is_answered_there(layer: nn.Linear) -> None:
    x, head = inputs(6), layer.modulation
    asked = head.calibration.position(0.7)
    assert torch.equal(run(layer, x, Setting(position=asked)), run(layer, x, Setting(0.7)))
    out = run(layer, x, *[Setting(0.2, position=p) for p in (0, 9_999, 16_001, 32_768, 1, 0)])
    noise = head.ladder.noise(x, torch.tensor([0, 9_999, 16_001, 32_768, 1, 0]))
    torch.testing.assert_close(out, linear()(x) + noise, rtol=1e-4, atol=1e-3)
    assert torch.equal(out[[0, 5]], linear()(x)[[0, 5]])


def test_a_level_below_the_floor_is_raised_to_it(layer: nn.Linear) -> None:
    x, floor = inputs(6), layer.modulation.floor
    assert floor > 0.01
    assert torch.equal(run(layer, x, Setting(0.01)), run(layer, x, Setting(floor)))


def test_a_slot_that_is_left_is_clean_again(layer: nn.Linear) -> None:
    x, head = inputs(3), layer.modulation
    logits, slots = linear()(x), torch.tensor([2, 5, 2])
    head.write(2, Setting(0.7))
    head.write(5, Setting(0.5, {3: 0.9}))
    busy = head(x, logits, slots).logits
    head.write(5, Setting())
    left = head(x, logits, slots).logits
    assert torch.equal(left[1], logits[1]) and not torch.equal(busy[1], logits[1])
    assert torch.equal(left[[0, 2]], busy[[0, 2]])
    head.write(2, Setting())
    assert not head.modulates and head(x, logits, slots).logits is logits


def test_a_focus_is_gone_with_its_slot_though_its_table_stays(layer: nn.Linear) -> None:
    x, head = inputs(400), layer.modulation
    logits = linear()(x)
    head.write_all([Setting(focus={3: 0.9}), Setting(focus={4: 0.9})])
    head.write_all([Setting(), Setting()])
    head.write(1, Setting(focus={4: 0.9}))
    other = head(x, logits, torch.zeros(400, dtype=torch.int64)).logits
    own = head(x, logits, torch.ones(400, dtype=torch.int64)).logits
    assert torch.equal(other, logits) and not torch.equal(own, logits)


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    levels=st.lists(st.sampled_from([1.0, 0.99, 0.9, 0.5]), min_size=1, max_size=8),
    focus=st.dictionaries(st.integers(0, CLASSES - 1), st.floats(-0.9, 0.9), max_size=3),
)
def test_shapes_and_dtypes_survive(
    calibration: Calibration, dtype: torch.dtype, levels: list[float], focus: dict[int, float]
) -> None:
    layer = modulated(calibration).to(dtype)
    out = run(layer, inputs(len(levels)).to(dtype), *[Setting(level, focus) for level in levels])
    assert out.shape == (len(levels), CLASSES) and out.dtype == dtype and bool(torch.isfinite(out).all())


def test_settings_for_another_batch_size_are_refused(layer: nn.Linear) -> None:
    layer.modulation.write_all([Setting(0.7)])
    with pytest.raises(ValueError, match="batch of 3"):
        layer(inputs(3))


@pytest.mark.parametrize("setting", [Setting(1.0, {CLASSES: 0.5}), Setting(1.0, {-1: 0.5}), Setting(1.0, {0: 0.995})])
def test_a_focus_out_of_range_is_refused(layer: nn.Linear, setting: Setting) -> None:
    for ask in (layer.modulation.prepare, layer.modulation.write_everyone):
        with pytest.raises(ValueError):
            ask(setting)


def test_a_setting_that_is_refused_leaves_the_slots_as_they_were(layer: nn.Linear) -> None:
    """And is refused again: it does not count as written."""
    x, head = inputs(3), layer.modulation
    before = run(layer, x, Setting(0.7))
    for _ in range(2):
        with pytest.raises(ValueError):
            head.write_everyone(Setting(0.9, {CLASSES: 0.5}))
    with torch.inference_mode():
        assert torch.equal(layer(x), before)
