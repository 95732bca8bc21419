"""Refits in a process of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deployments.collecting import RefitFailed, refit_from
from deployments.config import REPOSITORY, Task
from deployments.engines.classifier import ImageClassifier
from tests.deployments.vision_support import SECRET, scenes, shipped

MODEL = "resnet18-cifar10"
SPEC = shipped(MODEL, Task.CLASSIFICATION)


async def test_a_folder_of_pictures_moves_the_levels_along_the_same_noise(tmp_path: Path) -> None:
    engine = ImageClassifier.load(SPEC)
    sample = engine.calibration_sample(REPOSITORY / "models" / MODEL / "calibration.safetensors")
    stored = engine.fit(replace(sample, features=sample.features[:500], logits=sample.logits[:500]), SECRET)
    for number, picture in enumerate(scenes(120, 32, 32)):
        picture.save(tmp_path / f"{number}.png")
    told: list[tuple[str, float]] = []

    refit = await refit_from(str(tmp_path), SPEC, SECRET, stored, 1, lambda step, share: told.append((step, share)))

    assert refit.rows == 120 and refit.curve != stored.curve
    assert (refit.fingerprint, refit.depth, refit.length_scale) == (
        stored.fingerprint,
        stored.depth,
        stored.length_scale,
    )
    assert stored.metric is not None and refit.metric is not None and torch.equal(refit.metric, stored.metric)
    assert [step for step, _ in told][0] == "loading the model" and "reading images" in dict(told)


async def test_a_file_that_is_no_sample_is_told_in_one_line(tmp_path: Path) -> None:
    engine = ImageClassifier.load(SPEC)
    sample = engine.calibration_sample(REPOSITORY / "models" / MODEL / "calibration.safetensors")
    stored = engine.fit(replace(sample, features=sample.features[:200], logits=sample.logits[:200]), SECRET)
    (tmp_path / "notes.txt").write_text("no sample")
    with pytest.raises(RefitFailed) as refused:
        await refit_from(str(tmp_path / "notes.txt"), SPEC, SECRET, stored, 1, lambda *_: None)
    assert "notes.txt" in str(refused.value) and "\n" not in str(refused.value)
