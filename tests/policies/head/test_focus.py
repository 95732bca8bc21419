"""Focus on classes: how often it wins, and where it acts at all."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from policies import Calibration, Head, Setting, focus_std

SECRET = b"the secret of this installation"
FEATURES, CLASSES = 32, 10


def final() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(FEATURES, CLASSES).requires_grad_(False)


def inputs(count: int, seed: int = 1) -> Tensor:
    return 4.0 * torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    x = inputs(4000)
    return Calibration.fit(SECRET, "model", x, final()(x), depth=128)


def answered(calibration: Calibration, x: Tensor, setting: Setting) -> Tensor:
    head = Head(calibration, SECRET, features=FEATURES, classes=CLASSES, slots=1)
    head.write_everyone(setting)
    return head(x, final()(x), head.slots_of(len(x))).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("strength", [0.9, 0.4])
def test_favour_changes_a_typical_contended_row_with_the_chosen_probability(
    calibration: Calibration, strength: float
) -> None:
    x = inputs(20_000, seed=4)
    clean = final()(x)
    second = clean.topk(2, dim=1).indices[:, 1]
    target = 3
    moved = answered(calibration, x, Setting(1.0, {target: strength}))
    contended = second == target
    won = (moved.argmax(dim=1) == target) & contended
    # At a margin of exactly the median the probability is the strength; over all margins it is near it.
    assert abs(float(won.sum() / contended.sum()) - strength) < 0.12
    assert torch.equal(moved[~contended], clean[~contended])


def test_avoid_acts_only_where_the_class_is_first(calibration: Calibration) -> None:
    x = inputs(5000, seed=6)
    clean = final()(x)
    first = clean.argmax(dim=1) == 3
    moved = answered(calibration, x, Setting(1.0, {3: -0.9}))
    assert torch.equal(moved[~first], clean[~first])
    left = (moved.argmax(dim=1) == 3)[first].float().mean()
    assert float(left) < 0.35


def test_an_avoided_class_does_not_yield_to_another_avoided_one() -> None:
    calibration = Calibration("m", 1.0, 64, ((0, 1.0), (32768, 0.3)), (1.0,), (5.0,), 300)
    head = Head(calibration, SECRET, features=2, classes=3, slots=1, contention=3)
    head.write_everyone(Setting(1.0, {0: -0.9, 1: -0.9}))
    x = torch.rand(300, 2) + 0.5
    logits = x @ torch.tensor([[1.0, 0.99, 0.9], [0.0, 0.0, 0.0]])
    both = head(x, logits, head.slots_of(300)).logits.argmax(dim=1)
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


@settings(deadline=None)
@given(strength=st.floats(-0.99, 0.99), gap=st.floats(0.0, 1e6))
def test_focus_std_is_even_in_the_strength_and_grows_with_it(strength: float, gap: float) -> None:
    delta = focus_std(strength, gap)
    assert 0.0 <= delta == focus_std(-strength, gap) <= focus_std(0.99, gap)
