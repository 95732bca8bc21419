"""The squares of a map that share their noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from policies import Calibration, Head, Setting, attach
from policies.head.blocks import block_means, spread

SECRET = b"a noise secret for the tests of blocks"


def test_means_are_of_squares_and_are_spread_over_them_again() -> None:
    maps = torch.randn(2, 3, 7, 5)
    means = block_means(maps, 3)
    assert means.shape == (2, 3, 3, 2)
    torch.testing.assert_close(means[:, :, 0, 0], maps[:, :, :3, :3].mean(dim=(2, 3)))
    torch.testing.assert_close(means[:, :, 2, 1], maps[:, :, 6:, 3:].mean(dim=(2, 3)))
    places = spread(means, 3, 7, 5)
    assert places.shape == maps.shape
    for y in range(7):
        for x in range(5):
            assert torch.equal(places[:, :, y, x], means[:, :, y // 3, x // 3])
    assert block_means(maps, 1) is maps and spread(maps, 1, 7, 5) is maps


@pytest.mark.parametrize("focus", [False, True])
def test_the_places_of_a_block_share_their_noise_and_blocks_differ(focus: bool) -> None:
    final = nn.Conv2d(16, 5, 1).requires_grad_(False)
    features = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    logits = final(features[..., None, None])[..., 0, 0]
    calibration = Calibration.fit(SECRET, "m", features, logits, depth=32, block=4)
    maps = torch.randn(2, 16, 10, 6, generator=torch.Generator().manual_seed(2))
    clean = final(maps)
    clean[:] = torch.tensor([1.0, 0.9, 0.0, 0.0, 0.0])[:, None, None]
    head = Head(calibration, SECRET, features=16, classes=5, slots=2)
    head.write_all([Setting(1.0, {1: 0.9}) if focus else Setting(0.7), Setting()])
    noise = head(maps, clean, head.slots_of(2)).logits - clean
    assert torch.equal(noise[1], torch.zeros_like(noise[1]))
    for block in (noise[0, :, :4, :4], noise[0, :, 8:, 4:]):
        assert block.abs().max() > 0.1
        assert torch.allclose(block, block[:, :1, :1].expand_as(block), atol=1e-4)
    assert not torch.allclose(noise[0, :, 3, 3], noise[0, :, 4, 3], atol=1e-2)


def test_a_conv_layers_maps_share_their_noise_too() -> None:
    final = nn.Conv2d(16, 5, 1).requires_grad_(False)
    calibration = Calibration("m", 4.0, 32, ((0, 1.0), (18_000, 0.3)), (1.0,), (1.0,), 300, block=4)
    maps = torch.randn(2, 16, 10, 6)
    clean = final(maps)
    attach(final, Head(calibration, SECRET, features=16, classes=5, slots=2))
    final.modulation.write_all([Setting(0.5), Setting()])  # type: ignore[operator,union-attr]
    noise = final(maps) - clean
    assert torch.equal(noise[1], torch.zeros_like(noise[1])) and noise[0].abs().max() > 0.1
    assert torch.allclose(noise[0, :, :4, :4], noise[0, :, :1, :1].expand(5, 4, 4), atol=1e-3)
