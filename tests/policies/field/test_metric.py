"""The noise field's metric."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from policies.calibration.calibration import Calibration
from policies.field.ladder import NoiseLadder
from policies.field.metric import duplicate_metric

SECRET = b"a noise secret for the tests of metrics"


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs that differ in 4 directions of 16, near-duplicates that scatter as widely in the other 12."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 16, generator=generator)
    scatter = torch.randn(100, 6, 16, generator=generator) * torch.tensor([0.05] * 4 + [1.0] * 12)
    return features[:100, None] + scatter, features, torch.zeros(400, dtype=torch.int64)


def test_the_metric_keeps_what_duplicates_share_and_drops_what_they_scatter_in() -> None:
    nearby, features, labels = inputs()
    metric = duplicate_metric(nearby, features, labels, directions=4)
    plain, kept = features[:, None] - features, (features[:, None] - features) @ metric
    repeats, kept_repeats = nearby[:, 0] - nearby[:, 1], (nearby[:, 0] - nearby[:, 1]) @ metric
    before = repeats.norm(dim=1).median() / plain.norm(dim=2).median()
    after = kept_repeats.norm(dim=1).median() / kept.norm(dim=2).median()
    assert after < 0.3 * before


def test_a_metric_of_other_features_or_without_duplicates_is_refused() -> None:
    nearby, features, labels = inputs()
    with pytest.raises(ValueError, match="nearby must be"):
        duplicate_metric(nearby[:, :1], features, labels)
    with pytest.raises(ValueError, match="metric must be"):
        NoiseLadder(SECRET, "m", features=8, classes=3, length_scale=1.0, depth=16, metric=torch.ones(16, 4))


def test_metric_and_block_survive_storage_and_a_refit(tmp_path: Path) -> None:
    nearby, features, labels = inputs()
    metric = duplicate_metric(nearby, features, labels, directions=4)
    logits = features @ torch.randn(16, 5, generator=torch.Generator().manual_seed(1))
    fitted = Calibration.fit(SECRET, "m", features, logits, depth=32, metric=metric, block=3)
    fitted.save(tmp_path / "c.json")
    loaded = Calibration.load(tmp_path / "c.json")
    assert loaded == fitted and loaded.block == 3
    assert loaded.metric is not None and torch.equal(loaded.metric, metric)
    one, other = (c.ladder(SECRET, features=16, classes=5).phi(features) for c in (fitted, loaded))
    assert torch.equal(one, other)
