"""What levels deliver on live rows, and a refit in place on the rows of drifted traffic."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from deployments.config import REPOSITORY, Task
from deployments.engines.errors import LoadError
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.live import Kept
from policies.audit import State
from policies.calibration.calibration import Calibration
from policies.calibration.sample import CalibrationSample
from policies.terms import Modulation
from tests.deployments.vision_support import SECRET, at, mistaken, scenes, shipped


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """Solved on a part of the bundled sample, to be quick."""
    engine = ImageClassifier.load(shipped("resnet18-cifar10", Task.CLASSIFICATION))
    sample = engine.calibration_sample(REPOSITORY / "models" / engine.model_id / "calibration.safetensors")
    return engine.fit(replace(sample, features=sample.features[:1000], logits=sample.logits[:1000]), SECRET)


@pytest.fixture
def classifier(calibration: Calibration) -> ImageClassifier:
    engine = ImageClassifier.load(shipped("resnet18-cifar10", Task.CLASSIFICATION))
    engine.least_live = 200  # type: ignore[misc]
    engine.install(calibration, SECRET)
    return engine


def answer(engine: ImageClassifier, images: list[Image.Image], terms: Modulation, size: int = 64) -> None:
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        engine.predict(batch, [terms] * len(batch))


def test_drift_is_seen_and_a_refit_on_live_rows_mends_it_on_the_same_noise(classifier: ImageClassifier) -> None:
    images, before = scenes(512, 32, 32), mistaken(classifier.head.calibration)
    classifier.install(before, SECRET)
    answer(classifier, images, at(0.7))
    classifier.judge_live()
    (report,) = classifier.reports()
    # Half of the same rows, so the field says about what the layer itself counted.
    assert report.delivered.answers == 512 and 200 < report.expected.answers < 312
    assert report.expected.level == pytest.approx(report.delivered.level, abs=0.1)
    assert report.state is State.DRIFTED

    refit = classifier.fit(classifier.sample_of(classifier.live_rows())[0], SECRET, stored=before)
    path = classifier.head.ladder.matrix(before.position(0.7))
    classifier.install(refit, SECRET)
    assert (refit.length_scale, refit.depth, refit.metric) == (before.length_scale, before.depth, before.metric)
    assert torch.equal(classifier.head.ladder.matrix(before.position(0.7)), path)
    assert classifier.reports()[0].delivered.answers == 0
    answer(classifier, images, at(0.7))
    classifier.judge_live()
    (mended,) = classifier.reports()
    # Two and a half standard errors of 256 rows to solve on, and as many to judge by.
    assert mended.expected.level == pytest.approx(0.7, abs=0.1)
    assert mended.delivered.level == pytest.approx(0.7, abs=0.05)
    assert mended.state is not State.DRIFTED
    assert classifier.audit()[0.7][0] == 1024


def test_a_live_refit_is_judged_by_other_inputs_than_it_is_solved_on(
    classifier: ImageClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that was sent again, in a batch of another size and so with other rounding, is the same input."""
    used: list[Kept] = []
    of = classifier.sample_of

    def remember(kept: Kept) -> tuple[CalibrationSample, torch.Tensor]:
        used.append(kept)
        return of(kept)

    monkeypatch.setattr(classifier, "sample_of", remember)
    monkeypatch.setattr(classifier, "least_live", 20)
    images = scenes(256, 32, 32)
    answer(classifier, images, at(0.7))
    answer(classifier, images, at(0.7), size=7)
    assert classifier.live.inputs == 256
    before = classifier.head.calibration
    classifier.judge_live()
    refit = classifier.fit(classifier.sample_of(classifier.live_rows())[0], SECRET, stored=before)
    classifier.install(refit, SECRET)
    classifier.judge_live()
    judged, solved, again = used
    assert len(solved.rows) == refit.answers and torch.equal(judged.groups, again.groups)
    assert not set(solved.groups.tolist()) & set(judged.groups.tolist())
    assert len({*solved.groups.tolist(), *judged.groups.tolist()}) == 256
    assert torch.cdist(solved.rows.float(), judged.rows.float()).min() > 0.01


def test_a_refit_takes_place_between_batches_of_a_running_server(classifier: ImageClassifier) -> None:
    images = scenes(512, 32, 32)
    answer(classifier, images, at(0.6))
    refit = classifier.fit(classifier.sample_of(classifier.live_rows())[0], SECRET, stored=classifier.head.calibration)
    failures: list[Exception] = []
    done = threading.Event()

    def serve() -> None:
        try:
            while not done.is_set():
                classifier.prepare(at(0.6, cat=0.5))
                classifier.predict(images[:8], [at(0.6), at(0.05), at(0.6, cat=0.5), Modulation()] * 2)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    for calibration in (refit, classifier.head.calibration) * 3:
        classifier.install(calibration, SECRET)
        classifier.judge_live()
    done.set()
    thread.join()
    assert not failures


def test_too_few_live_rows_and_another_field_are_refused(classifier: ImageClassifier) -> None:
    answer(classifier, scenes(12, 32, 32), at(0.7))
    with pytest.raises(LoadError, match="live rows of 12 inputs.*needs 400"):
        classifier.sample_of(classifier.live_rows())[0]
    with pytest.raises(ValueError, match="noise field"):
        classifier.install(replace(classifier.head.calibration, depth=256), SECRET)


def test_a_refit_from_a_folder_reads_every_picture_once(classifier: ImageClassifier, tmp_path: Path) -> None:
    for number, image in enumerate(scenes(100, 32, 32)):
        image.save(tmp_path / f"{number}.png")
    told: list[float] = []
    sample = classifier.calibration_sample(tmp_path, lambda _, share: told.append(share), refit=True)
    assert sample.features.shape == (100, 512) and told == sorted(told) and len(told) == 100
    (tmp_path / "50.png").write_bytes(b"no picture")
    with pytest.raises(LoadError, match="50.png"):
        classifier.calibration_sample(tmp_path, refit=True)
    (tmp_path / "none").mkdir()
    with pytest.raises(LoadError, match="holds 0"):
        classifier.calibration_sample(tmp_path / "none", refit=True)


def test_a_picture_is_the_same_input_in_every_process() -> None:
    """Replicas that split pictures differently would judge a refit on what another has solved it on."""
    code = "import torch; from deployments.engines.images.hashes import hashed; print(hashed(torch.arange(48.0)))"
    said = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert said[0] == said[1] != ""
