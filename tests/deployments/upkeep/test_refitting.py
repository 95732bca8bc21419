"""What one flooding tenant can move by a refit on live rows: no further than the bound in docs/operations.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deployments.config import Task
from deployments.engines.errors import LoadError
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.sample import read_features
from deployments.engines.images.segmenter import ImageSegmenter
from deployments.engines.live import Kept, LiveRows
from deployments.upkeep.refitting import Refitted, delivered_by_tenant, refitted
from policies.calibration.calibration import Calibration
from tests.deployments.upkeep_support import SAMPLE, solve
from tests.deployments.vision_support import SECRET, shipped

LEVELS = (0.5, 0.7, 0.9)


@pytest.fixture(scope="module")
def engine() -> ImageClassifier:
    return ImageClassifier.load(shipped("resnet18-cifar10", Task.CLASSIFICATION))


@pytest.fixture(scope="module")
def features(engine: ImageClassifier) -> Tensor:
    """Those of 4,000 pictures, mixed; on the last 2,000, the other tenants' later traffic, nothing is solved."""
    found = engine.calibration_sample(SAMPLE).features
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))]


@pytest.fixture(scope="module")
def stored() -> Calibration:
    return solve(1000)


def hard(features: Tensor) -> Tensor:
    """Between two pictures each: the answer gives way to little noise."""
    return (features + features.roll(1, dims=0)) / 2


def kept(*tenants: Tensor) -> Kept:
    """The live rows of tenants, a picture each."""
    live, first = LiveRows(8192), 0
    for number, rows in enumerate(tenants):
        live.add(rows, range(first, first + len(rows)), flows=[f"t{number}"] * len(rows))
        first += len(rows)
    return live.kept()


def delivered(engine: ImageClassifier, calibration: Calibration, features: Tensor) -> dict[float, float]:
    rows = kept(features)
    tallies = delivered_by_tenant(engine, rows, SECRET, calibration, LEVELS)
    return {level: next(iter(own.values())).level for level, own in tallies.items()}


def refit(engine: ImageClassifier, stored: Calibration, tenants: Sequence[Tensor], *, strict: bool = True) -> Refitted:
    return refitted(engine, kept(*tenants), SECRET, stored, LEVELS, least=200, strict=strict)


def test_a_tenant_that_floods_a_refit_is_left_out_and_the_others_get_what_they_would_without_it(
    engine: ImageClassifier, features: Tensor, stored: Calibration
) -> None:
    honest, later = features[:1800].chunk(6), features[2000:]
    alone = refit(engine, stored, honest)
    assert (alone.tenants, alone.left_out, alone.capped) == (6, 0, True)
    assert alone.calibration.favour_gap == stored.favour_gap and alone.calibration.same_field(stored)
    flooded = refit(engine, stored, [*honest, hard(features[:1800])])
    assert (flooded.tenants, flooded.left_out) == (6, 1)
    without, with_it = (delivered(engine, r.calibration, later) for r in (alone, flooded))
    assert with_it == pytest.approx(without, abs=0.015)
    # Uncapped, as a refit of all that came would be.
    everything = kept(*honest, hard(features[:1800]))
    naive = engine.fit(engine.sample_of(everything)[0], SECRET, stored=stored)
    assert delivered(engine, naive, later)[0.7] > without[0.7] + 0.08


def test_a_tenant_that_stays_within_the_bound_moves_others_no_further_than_it(
    engine: ImageClassifier, features: Tensor, stored: Calibration
) -> None:
    """Part of its rows are odd: as many as pass."""
    honest, later = features[:1800].chunk(6), features[2000:]
    without = delivered(engine, refit(engine, stored, honest).calibration, later)
    odd, usual = hard(features[:1800]), features[:1800].flip(0)
    for share in (0.5, 0.35, 0.2):
        # Not quite the others' pictures: one that came before is not kept again.
        rows = torch.cat([odd[: int(share * 1800)], usual[int(share * 1800) :] * 1.01])
        subtle = refit(engine, stored, [*honest, rows])
        if not subtle.left_out:
            break
    assert not subtle.left_out and subtle.tenants == 7
    moved = delivered(engine, subtle.calibration, later)
    for level in LEVELS:
        # The bound, and two standard errors of 2,000 pictures that are judged twice on nearly the same noise.
        assert abs(moved[level] - without[level]) < 0.03 + 0.01
    assert moved[0.7] > without[0.7]


def test_two_that_flood_are_too_many(engine: ImageClassifier, features: Tensor, stored: Calibration) -> None:
    honest = features[:1200].chunk(4)
    surer = features[:600] * 4.0
    with pytest.raises(LoadError, match="two tenants' live inputs each move a level of resnet18-cifar10.*by -0"):
        refit(engine, stored, [*honest, surer, features[600:1200] * 4.0])


def test_rows_of_four_tenants_are_for_an_admin_to_solve_on(
    engine: ImageClassifier, features: Tensor, stored: Calibration
) -> None:
    honest = features[:1200].chunk(4)
    with pytest.raises(LoadError, match="live rows of 4 tenants.*needs 200, of at least 5 tenants"):
        refit(engine, stored, honest)
    asked = refit(engine, stored, honest, strict=False)
    assert (asked.tenants, asked.capped, asked.calibration.answers) == (4, False, 1200)
    with pytest.raises(LoadError, match="besides one that moves a level.*0.. by"):
        refit(engine, stored, [*honest, hard(features[:1800])])


def test_a_tenant_that_floods_masks_is_left_out() -> None:
    engine = ImageSegmenter.load(shipped("segformer-b0-camvid", Task.SEGMENTATION))
    path = SAMPLE.parents[1] / "segformer-b0-camvid" / "calibration.safetensors"
    tiles, metric, metadata = read_features(path)
    sample = engine._sample(tiles, int(metadata["scale"]), metric)
    stored = engine.fit(sample, SECRET)
    live = LiveRows(engine.live_capacity)
    for number, picture in enumerate(tiles.split(6)):
        live.add(picture, [number] * len(picture), flows=[f"t{number % 6}"] * len(picture))
    for number, picture in enumerate((tiles * 6.0).split(6)):
        live.add(picture, [100 + number] * len(picture), flows=["flood"] * len(picture))
    rows = replace(live.kept(), scale=int(metadata["scale"]))
    found = refitted(engine, rows, SECRET, stored, LEVELS, least=20, strict=True)
    assert (found.tenants, found.left_out) == (6, 1)
    assert found.calibration.position(0.7) == pytest.approx(stored.position(0.7), abs=400)
