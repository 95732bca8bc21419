"""A level's matrix in both layouts gives one noise, and is packed once for all who hold it."""

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from deployments.engines.level_matrices import LevelMatrices, LevelMatrix
from policies.calibration import Calibration
from policies.layer import ModulatedLayer

H, V, D, POSITION = 16, 259, 32, 17_000


@pytest.fixture
def matrices() -> LevelMatrices:
    calibration = Calibration("tiny", 4.0, D, ((0, 1.0), (18_000, 0.5)), (2.0,), (1.0,), 100)
    final = nn.Linear(H, V).requires_grad_(False)
    return LevelMatrices(ModulatedLayer(final, calibration, b"a secret for the tests"))


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 8, 40])
def test_noise_is_the_product_in_every_layout(matrices: LevelMatrices, rows: int) -> None:
    level = matrices.at(POSITION)
    wanted = matrices._layer.matrix_at(POSITION)
    phi = torch.nn.functional.normalize(torch.randn(rows, D), dim=1)
    for most in (1, 2, 8):
        torch.testing.assert_close(level.noise(phi, most), phi @ wanted, atol=1e-5, rtol=1e-5)


def test_other_devices_multiply_the_plain_matrix() -> None:
    level = LevelMatrix(torch.empty(D, V, device="meta"))
    assert level.noise(torch.empty(3, D, device="meta"), 3).shape == (3, V)


def test_it_is_laid_out_once_for_all_and_given_up_by_the_last(matrices: LevelMatrices) -> None:
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(matrices.at, [POSITION] * 32 + [POSITION + 1]))
    other = got.pop()
    assert all(level is got[0] for level in got) and other is not got[0]
    got.clear()
    gc.collect()
    assert list(matrices._held) == [POSITION + 1]
