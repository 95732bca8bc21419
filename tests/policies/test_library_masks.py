"""Masks in one call: a level is a share of the pixels as the model answers them, however it interpolates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies import modulate

SECRET = b"the secret of this installation"


class Segmenter(nn.Module):
    """Five classes of street, at a fourth of the picture, interpolated as asked."""

    def __init__(self, size: float | None, align_corners: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Tanh(), nn.Conv2d(16, 16, 3, 1, 1), nn.Tanh())
        self.final, self.auxiliary = nn.Conv2d(16, 5, 1, bias=False), nn.Conv2d(16, 5, 1)
        self.size, self.align_corners = size, align_corners

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        features = self.trunk(pixel_values)
        maps = self.final(features)
        if self.size is not None:
            size = [round(side * self.size) for side in pixel_values.shape[2:]]
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=self.align_corners)
        return {"out": maps, "aux": self.auxiliary(features)}


def streets(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = 3 * torch.randn(count, 3, 12, 12, generator=generator)
    return F.interpolate(coarse, (72, 64), mode="bilinear")


@pytest.mark.parametrize(
    ("size", "align_corners"), [(None, None), (1.0, False), (0.5, True), (0.6, False)],
    ids=["as they are", "upernet", "dpt", "odd"],
)  # fmt: skip
def test_a_level_holds_at_the_resolution_of_the_answer(size: float | None, align_corners: bool | None) -> None:
    model = Segmenter(size, align_corners).eval()
    sold = modulate(model, {"pixel_values": streets(160, 1)}, SECRET)
    others = streets(160, 2)

    def labels(level: Any) -> Tensor:
        with sold.at(level), torch.no_grad():
            return model(others)["out"].argmax(dim=1)

    clean = labels(1.0)
    assert sold.head.calibration.block == 4 and sold.head.calibration.balance is not None
    for level in (0.9, 0.7, 0.5):
        assert (labels(level) == clean).float().mean().item() == pytest.approx(level, abs=0.03)
    assert not (labels([0.7, 1.0] * 80)[1::2] != clean[1::2]).any()


def test_the_rows_are_what_the_interpolation_reads() -> None:
    from policies.library.masks import PixelReadout, _pixels

    maps = torch.randn(1, 6, 7, 9, generator=torch.Generator().manual_seed(3))
    for align_corners in (False, True):
        features, _, weights = _pixels(maps, align_corners, (20, 31), 4, 5)
        generator = torch.Generator().manual_seed(5)
        y, x = (torch.randint(side, (len(weights),), generator=generator) for side in (20, 31))
        whole = F.interpolate(maps, (20, 31), mode="bilinear", align_corners=align_corners)
        torch.testing.assert_close(PixelReadout(weights)(features), whole[0, :, y, x].T)
