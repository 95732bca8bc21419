"""The noise ladder on the numbers: P1 what noise depends on, P2 independent increments, P3 fixed noise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.field.ladder import NoiseLadder
from policies.field.variance import MAX_VARIANCE, POSITIONS, variance

FEATURES, CLASSES, DEPTH = 12, 6, 64
KEYS = 600
MIDDLE = POSITIONS // 2


def ladder(secret: bytes = b"a secret of the installation", field: str = "model", **changes: float) -> NoiseLadder:
    sizes = {"features": FEATURES, "classes": CLASSES, "length_scale": 1.0, "depth": DEPTH} | changes
    return NoiseLadder(secret, field, **sizes)  # type: ignore[arg-type]


def noise(rungs: NoiseLadder, features: torch.Tensor, position: int) -> torch.Tensor:
    return rungs.noise(features, torch.full((len(features),), position))


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return torch.randn(4, FEATURES, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def over_keys(features: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """Noise [keys, positions, classes] of one input at neighbouring and distant positions."""
    positions = [MIDDLE, MIDDLE + 1, MIDDLE + 100, MIDDLE + 3000]
    rows = []
    for key in range(KEYS):
        rungs = ladder(b"secret number %08d" % key)
        phi = rungs.phi(features[:1])
        rows.append(torch.cat([phi @ rungs.matrix(position) for position in positions]))
    return positions, torch.stack(rows)


def test_noise_depends_on_secret_field_variance_and_input_only(features: torch.Tensor) -> None:
    once = noise(ladder(), features, MIDDLE)
    assert torch.equal(once, noise(ladder(), features, MIDDLE))
    assert not torch.equal(once, noise(ladder(secret=b"another secret of a kind"), features, MIDDLE))
    assert not torch.equal(once, noise(ladder(field="other"), features, MIDDLE))
    assert not torch.equal(once, noise(ladder(), features, MIDDLE + 1))
    assert not torch.equal(once, noise(ladder(), features + 1.0, MIDDLE))


def test_noise_of_a_row_does_not_depend_on_its_batch(features: torch.Tensor) -> None:
    together = ladder().noise(features, torch.tensor([MIDDLE, 0, MIDDLE + 500, MIDDLE]))
    for row, position in enumerate([MIDDLE, 0, MIDDLE + 500, MIDDLE]):
        alone = noise(ladder(), features[row : row + 1], position)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_noise_is_normal_with_the_positions_variance_over_keys(over_keys: tuple[list[int], torch.Tensor]) -> None:
    positions, drawn = over_keys
    for index, position in enumerate(positions):
        z = (drawn[:, index] / math.sqrt(variance(position))).flatten().numpy()
        # Two-sided Kolmogorov-Smirnov distance to N(0, 1), at the 0.1 % point.
        ranks = np.arange(1, z.size + 1) / z.size
        cdf = np.array([0.5 * math.erfc(-value / math.sqrt(2.0)) for value in np.sort(z)])
        assert np.abs(cdf - ranks).max() < 1.95 / math.sqrt(z.size)


def test_increments_are_independent_of_the_lower_variance(over_keys: tuple[list[int], torch.Tensor]) -> None:
    positions, drawn = over_keys
    bound = 4.0 / math.sqrt(KEYS * CLASSES)
    for low in range(len(positions)):
        for high in range(low + 1, len(positions)):
            step = drawn[:, high] - drawn[:, low]
            expected = variance(positions[high]) - variance(positions[low])
            assert float(step.var()) == pytest.approx(expected, rel=5.0 * math.sqrt(2.0 / (KEYS * CLASSES)))
            assert abs(float(np.corrcoef(step.flatten(), drawn[:, low].flatten())[0, 1])) < bound


def test_classes_are_independent(over_keys: tuple[list[int], torch.Tensor]) -> None:
    correlation = np.corrcoef(over_keys[1][:, 0].T.numpy()) - np.eye(CLASSES)
    assert np.abs(correlation).max() < 4.5 / math.sqrt(KEYS)


def test_noise_at_a_position_is_the_same_whatever_else_is_in_use(features: torch.Tensor) -> None:
    alone = ladder().matrix(MIDDLE + 7)
    busy = ladder()
    for position in (1, MIDDLE, MIDDLE + 6, MIDDLE + 8, POSITIONS):
        busy.matrix(position)
    assert torch.equal(alone, busy.matrix(MIDDLE + 7))


def test_exploring_the_path_meets_the_matrices_of_its_positions() -> None:
    rungs, seen = ladder(), []
    found = rungs.explore(lambda c, _position: seen.append(c.clone()) or 1.0 / (1.0 + float(c.var())), tolerance=0.2)
    by_value = {round(1.0 / (1.0 + float(c.var())), 9): c for c in seen}
    for position, value in found:
        assert torch.equal(by_value[round(value, 9)], rungs.matrix(position))


def test_exploring_tells_how_far_it_is_though_the_path_be_lower_on_the_way_than_at_its_end() -> None:
    told: list[float] = []
    found = ladder().explore(lambda _c, at: abs(1.0 - 1.6 * at / POSITIONS), 0.05, told.append)
    assert min(value for _, value in found) < found[-1][1]
    assert told == sorted(told) and told[0] == 0.0 and told[-1] == 1.0


def test_near_inputs_get_near_noise_and_far_ones_do_not() -> None:
    base = torch.randn(200, FEATURES, generator=torch.Generator().manual_seed(1))
    rungs, sigma = ladder(length_scale=2.0), math.sqrt(variance(MIDDLE))
    reference = noise(rungs, base, MIDDLE) / sigma
    near = noise(rungs, base + 0.01, MIDDLE) / sigma
    far = noise(rungs, base + 20.0, MIDDLE) / sigma
    assert float((near - reference).abs().mean()) < 0.1
    assert abs(float(np.corrcoef(far.flatten(), reference.flatten())[0, 1])) < 0.5


def test_variance_runs_from_nothing_to_its_end() -> None:
    assert variance(0) == 0.0
    assert variance(POSITIONS) == pytest.approx(MAX_VARIANCE)
    assert all(variance(p) < variance(p + 1) for p in range(0, POSITIONS, 997))


@pytest.mark.parametrize("position", [-1, POSITIONS + 1])
def test_a_position_off_the_grid_is_refused(position: int) -> None:
    with pytest.raises(ValueError, match="position"):
        ladder().matrix(position)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        ladder(secret=b"short")


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(2, 30)),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    position=st.integers(0, POSITIONS),
    count=st.integers(0, 5),
)
def test_noise_is_float32_and_finite_whatever_the_features(
    sizes: tuple[int, int], dtype: torch.dtype, position: int, count: int
) -> None:
    rungs = NoiseLadder(
        b"a secret of the installation", "model", features=sizes[0], classes=sizes[1], length_scale=2.0, depth=8
    )
    x = (3.0 * torch.randn(count, sizes[0])).to(dtype)
    drawn, phi = rungs.noise(x, torch.full((count,), position)), rungs.phi(x)
    assert drawn.shape == (count, sizes[1]) and drawn.dtype == phi.dtype == torch.float32
    assert torch.isfinite(drawn).all() and bool(drawn.eq(0.0).all()) is (position == 0 or count == 0)
    torch.testing.assert_close(phi.norm(dim=1), torch.ones(count))
