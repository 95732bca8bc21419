"""The closed form against simulation, known values and bad input."""

import math

import pytest
import torch

from policies import agreement, sigma_for

DRAWS = 20_000


@pytest.mark.parametrize("classes", [2, 3, 10, 200])
@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.0, 30.0])
def test_it_agrees_with_simulation(classes: int, sigma: float) -> None:
    generator = torch.Generator().manual_seed(classes)
    z = 3.0 * torch.randn(4, classes, generator=generator)
    same = torch.zeros(4)
    for _ in range(DRAWS // 1000):
        noisy = z + sigma * torch.randn(1000, *z.shape, generator=generator)
        same += (noisy.argmax(dim=2) == z.argmax(dim=1)).sum(dim=0)
    bound = 4.0 * math.sqrt(0.25 / DRAWS)
    assert float((same / DRAWS - agreement(z, sigma)).abs().max()) < bound


def test_two_classes_have_the_textbook_value() -> None:
    gap, sigma = 1.3, 0.7
    expected = 0.5 * math.erfc(-gap / (sigma * math.sqrt(2.0)) / math.sqrt(2.0))
    assert float(agreement(torch.tensor([[gap, 0.0]], dtype=torch.float64), sigma)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("classes", [2, 100, 10_000, 50_000])
def test_without_gaps_it_is_one_over_the_classes(classes: int) -> None:
    assert float(agreement(torch.zeros(1, classes), 1.0)) == pytest.approx(1.0 / classes, rel=1e-6)


def test_masked_classes_do_not_count() -> None:
    z = torch.tensor([[1.0, 0.5, -math.inf, -math.inf]])
    assert float(agreement(z, 1.0)) == pytest.approx(float(agreement(z[:, :2], 1.0)), abs=1e-12)


def test_no_noise_and_one_class_change_nothing() -> None:
    assert agreement(torch.randn(5, 4), 0.0).eq(1.0).all()
    assert agreement(torch.randn(5, 1), 3.0).eq(1.0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_takes_every_float_dtype(dtype: torch.dtype) -> None:
    assert agreement(torch.randn(3, 7).to(dtype), 1.0).dtype == torch.float64


@pytest.mark.parametrize("utility", [0.99, 0.9, 0.7, 0.3])
def test_sigma_for_solves_for_the_level(utility: float) -> None:
    z = 4.0 * torch.randn(500, 10, generator=torch.Generator().manual_seed(2))
    assert float(agreement(z, sigma_for(z, utility)).mean()) == pytest.approx(utility, abs=1e-3)


def test_full_utility_needs_no_noise() -> None:
    assert sigma_for(torch.randn(5, 4), 1.0) == 0.0


@pytest.mark.parametrize(
    ("logits", "sigma", "says"),
    [
        (torch.tensor([[math.nan, 1.0]]), 1.0, "NaN"),
        (torch.tensor([[math.inf, 1.0]]), 1.0, "inf"),
        (torch.full((1, 3), -math.inf), 1.0, "finite"),
        (torch.zeros(3), 1.0, "shape"),
        (torch.zeros(1, 3, dtype=torch.int64), 1.0, "floating"),
        (torch.zeros(1, 3), -1.0, "sigma"),
        (torch.zeros(1, 3), math.nan, "sigma"),
    ],
)
def test_bad_input_is_named(logits: torch.Tensor, sigma: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        agreement(logits, sigma)


def test_a_level_below_the_floor_is_refused() -> None:
    with pytest.raises(ValueError, match="floor"):
        sigma_for(torch.randn(50, 4), 0.1)
