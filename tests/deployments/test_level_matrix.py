"""A level's matrix gives one noise in both layouts."""

import pytest
import torch
import torch.nn.functional as F

from deployments.engines.level_matrix import LevelMatrix

V, D = 259, 32


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 8, 40])
def test_noise_is_the_product_in_every_layout(rows: int) -> None:
    matrix, phi = torch.randn(D, V), F.normalize(torch.randn(rows, D), dim=1)
    level = LevelMatrix(matrix)
    for most in (1, 2, 8):
        torch.testing.assert_close(level.noise(phi, most), phi @ matrix, atol=1e-5, rtol=1e-5)


def test_other_devices_multiply_the_plain_matrix() -> None:
    level = LevelMatrix(torch.empty(D, V, device="meta"))
    assert level.noise(torch.empty(3, D, device="meta"), 3).shape == (3, V)
