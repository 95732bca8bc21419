"""The closed form against simulation, known values and bad input."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import agreement, sigma_for

DRAWS = 1_000_000
WITHIN = 0.002
"""What the closed form may be off by; a million draws have a standard error of at most 0.0005."""
SIGMAS = [0.01, 0.1, 1.0, 10.0, 100.0]
SPREAD = (0.0, 0.01, 0.3, 2.0, 8.0, 60.0)


def grouped(classes: int) -> tuple[torch.Tensor, dict[float, int]]:
    """One row [1, K] whose gaps are those of SPREAD, ever more classes at the larger; and how many lie at each."""
    top, *gaps = SPREAD[: max(2, min(len(SPREAD), classes))]
    sizes = {gap: max(1, (classes - 1) // 2 ** (len(gaps) - i)) for i, gap in enumerate(gaps)}
    sizes[gaps[-1]] += classes - 1 - sum(sizes.values())
    row = torch.tensor([top, *(-gap for gap, count in sizes.items() for _ in range(count))], dtype=torch.float64)
    assert len(row) == classes
    return row[None], sizes


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("classes", [2, 10, 100, 10_000])
def test_it_agrees_with_simulation(classes: int, sigma: float) -> None:
    """The best of n equal classes is drawn as such: its noise is Phi^{-1}(U^{1/n})."""
    row, sizes = grouped(classes)
    generator = torch.Generator().manual_seed(classes)
    top = sigma * torch.randn(DRAWS, dtype=torch.float64, generator=generator)
    survives = torch.ones(DRAWS, dtype=torch.bool)
    for gap, count in sizes.items():
        uniform = torch.rand(DRAWS, dtype=torch.float64, generator=generator)
        survives &= top > sigma * torch.special.ndtri(uniform ** (1.0 / count)) - gap
    assert float(agreement(row, sigma)) == pytest.approx(float(survives.double().mean()), abs=WITHIN)


@pytest.mark.parametrize("sigma", [0.2, 2.0])
def test_it_agrees_with_simulation_where_every_logit_differs(sigma: float) -> None:
    generator = torch.Generator().manual_seed(3)
    z = 3.0 * torch.randn(50, generator=generator)
    noisy = z + sigma * torch.randn(DRAWS, len(z), generator=generator)
    simulated = float((noisy.argmax(dim=1) == z.argmax()).double().mean())
    assert float(agreement(z[None], sigma)) == pytest.approx(simulated, abs=WITHIN)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("classes", [2, 20_000, 150_000])
def test_it_agrees_with_adaptive_quadrature(classes: int, sigma: float) -> None:
    row, sizes = grouped(classes)

    def integrand(u: mpmath.mpf) -> mpmath.mpf:
        product = mpmath.npdf(u)
        for gap, count in sizes.items():
            product *= mpmath.ncdf(u + gap / sigma) ** count
        return product

    exact, error = mpmath.quad(integrand, [*range(-9, 10)], error=True)
    assert error < 1e-6
    assert float(agreement(row, sigma)) == pytest.approx(float(exact), abs=1e-6)


@pytest.mark.parametrize(
    ("row", "sigma", "expected"),
    [
        ([0.0, -1e30], 1.0, 1.0),
        ([0.0, -3e38], 1e-3, 1.0),
        ([3e38, -3e38], 1.0, 1.0),
        ([0.0, 0.0], 1e-300, 0.5),
        ([0.0, 0.0, -1e9], 1.0, 0.5),
        ([0.0, -1.0], 1e300, 0.5),
        ([5.0, 5.0, 5.0, -math.inf], 0.01, 1.0 / 3.0),
        ([1e4, 1e4 - 1e-3, 0.0], 1e-3, 0.760250),  # Phi(1 / sqrt 2)
        ([0.0, -math.inf, -math.inf], 1e6, 1.0),
    ],
)
def test_extreme_gaps_ties_and_masked_classes(row: list[float], sigma: float, expected: float) -> None:
    assert float(agreement(torch.tensor([row], dtype=torch.float64), sigma)) == pytest.approx(expected, abs=1e-6)


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
        (torch.tensor([[0.0, 1.0], [0.0, math.nan]], dtype=torch.float16), 1.0, "NaN"),
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


@settings(max_examples=25, deadline=None)
@given(
    classes=st.integers(2, 30),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    sigma=st.floats(0.0, 1e6),
    shift=st.floats(-50.0, 50.0),
)
def test_agreement_lies_between_chance_and_certainty_and_ignores_a_shift(
    classes: int, dtype: torch.dtype, sigma: float, shift: float
) -> None:
    logits = (3.0 * torch.randn(3, classes, generator=torch.Generator().manual_seed(0))).to(dtype)
    survives = agreement(logits, sigma)
    assert survives.shape == (3,) and survives.dtype == torch.float64
    assert ((survives >= 1.0 / classes - 1e-9) & (survives <= 1.0)).all()
    assert (survives >= agreement(logits, sigma * 1.5 + 0.01) - 1e-9).all()
    torch.testing.assert_close(agreement(logits.double() + shift, sigma), survives)


@settings(max_examples=25, deadline=None)
@given(classes=st.integers(2, 40), level=st.floats(0.55, 1.0))
def test_sigma_for_is_the_inverse_of_agreement(classes: int, level: float) -> None:
    logits = 3.0 * torch.randn(60, classes, generator=torch.Generator().manual_seed(0))
    assert float(agreement(logits, sigma_for(logits, level)).mean()) == pytest.approx(level, abs=1e-3)
