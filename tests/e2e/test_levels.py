"""What the tiers deliver over HTTP, against gold, on held-back pictures; and what focus does to them."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import CLASSIFIER, SEGMENTER, Application, mask_of

TOLERANCE = 0.03
CALIBRATING = 4000
"""Pictures on which the classifier's levels were solved."""
LEVELS = {"silver": 0.9, "free": 0.7}


def ask_all(app: Application, tier: str, path: str, images: list[bytes]) -> list[Any]:
    """Answers to many pictures, asked for eight at a time."""
    with app.client(tier) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda image: client.post(path, content=image), images))
    assert all(answer.status_code == 200 for answer in answers)
    return [answer.json() for answer in answers]


def test_classification_tiers_deliver_their_level(app: Application, cifar: list[tuple[bytes, str]]) -> None:
    images = [image for image, _ in cifar]
    top = {
        tier: np.array([answer[0]["label"] for answer in ask_all(app, tier, f"/models/{CLASSIFIER}", images)])
        for tier in ("gold", "silver", "free")
    }
    accuracy = float((top["gold"] == np.array([name for _, name in cifar])).mean())
    assert accuracy > 0.84
    for tier, level in LEVELS.items():
        error = math.sqrt(level * (1 - level) * (1 / len(images) + 1 / CALIBRATING))
        assert float((top[tier] == top["gold"]).mean()) == pytest.approx(level, abs=0.01 + 2 * error)


@pytest.fixture(scope="module")
def maps(app: Application, camvid: list[tuple[bytes, np.ndarray]], street_classes: list[str]) -> dict[str, np.ndarray]:
    """Class maps [50, 360, 480] by what was asked for."""
    images = [image for image, _ in camvid]

    def of(tier: str, query: str = "") -> np.ndarray:
        answers = ask_all(app, tier, f"/models/{SEGMENTER}{query}", images)
        return np.stack([mask_of(answer, street_classes) for answer in answers])

    return {tier: of(tier) for tier in ("gold", "silver", "free")} | {
        "favour": of("gold", "?focus=pedestrian=0.9"),
        "avoid": of("gold", "?focus=pedestrian=-0.9"),
    }


@pytest.mark.parametrize("tier", sorted(LEVELS))
def test_segmentation_tiers_deliver_their_level(maps: dict[str, np.ndarray], tier: str) -> None:
    assert maps["gold"].size > 2_000_000
    assert float((maps[tier] == maps["gold"]).mean()) == pytest.approx(LEVELS[tier], abs=TOLERANCE)


def test_focus_moves_the_recall_of_pedestrians(
    maps: dict[str, np.ndarray], camvid: list[tuple[bytes, np.ndarray]], street_classes: list[str]
) -> None:
    truth, k = np.stack([labels for _, labels in camvid]), street_classes.index("pedestrian")
    recall = {name: float((maps[name][truth == k] == k).mean()) for name in ("gold", "favour", "avoid")}
    assert recall["favour"] > recall["gold"] + 0.1
    assert recall["avoid"] < recall["gold"] / 2


def test_avoiding_changes_nothing_but_the_avoided_class(maps: dict[str, np.ndarray], street_classes: list[str]) -> None:
    other = maps["gold"] != street_classes.index("pedestrian")
    # Upsampling blends a changed logit into its neighbours, so pixels at the border of a pedestrian may follow.
    assert float((maps["avoid"][other] != maps["gold"][other]).mean()) < 0.005
