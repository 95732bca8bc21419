"""What the benchmarks of the paper's numbers and of text quality compute."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from deployments.config import REPOSITORY
from policies.closed_form import agreement

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from focus_classes import Scores, within
from paper_overlay import CIFAR, SIGMAS, Curve, margins_of
from paper_support import winning
from text_quality import distribution
from text_tasks import tasks

LOGITS = 3.0 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sigma", [0.1, 1.0, 20.0])
def test_every_class_wins_as_often_as_simulated(sigma: float) -> None:
    found = winning(LOGITS, sigma)
    assert found.sum(dim=1) == pytest.approx(1.0, abs=1e-6)
    assert found.gather(1, LOGITS.argmax(dim=1, keepdim=True))[:, 0] == pytest.approx(agreement(LOGITS, sigma))
    drawn = torch.randn(20_000, 7, generator=torch.Generator().manual_seed(1))
    simulated = torch.bincount((LOGITS[0] + sigma * drawn).argmax(dim=1), minlength=7) / len(drawn)
    assert found[0] == pytest.approx(simulated.double(), abs=0.015)


def test_a_curve_of_other_units_and_quality_is_laid_on_the_authors() -> None:
    sigmas = np.geomspace(0.1, 20.0, 400)
    relative = CIFAR.relative
    own = Curve("own", 0.7, 0.1, 10, sigmas, 0.1 + 0.6 * relative.at(sigmas / 0.4))
    scale, left = own.relative.fit(relative)
    assert scale == pytest.approx(0.4, rel=0.01)
    assert abs(left).max() < 0.005
    assert abs(own.fit(CIFAR)[1]).max() > 0.05


def test_margins_are_found_from_the_curve_that_they_give() -> None:
    u = torch.randn(400, generator=torch.Generator().manual_seed(0))
    rows = torch.zeros(400, 10)
    rows[:, 0] = (10.0 * (1.0 + 0.4 * u)).clamp(min=0.0)
    values = np.array([(float(agreement(rows, s).mean()) - 0.1) / 0.9 for s in SIGMAS])
    mean, spread = margins_of(Curve("own", 1.0, 0.0, 10, SIGMAS, values))
    assert (mean, spread) == (pytest.approx(10.0, abs=0.6), pytest.approx(0.4, abs=0.1))


def test_recall_is_read_where_the_cost_is_first_met() -> None:
    def scores(recall: float, iou: float) -> Scores:
        return Scores(torch.tensor([recall, 0.5]), torch.tensor([iou, iou]))

    found = [scores(0.2, 0.5), scores(0.4, 0.5), scores(0.8, 0.4), scores(0.9, 0.5)]
    assert within(0.1, found, 0) == pytest.approx(0.6)
    assert within(0.5, found, 0) == pytest.approx(0.9)


def test_what_tokens_are_drawn_from_at_each_temperature() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0]])
    assert distribution(logits, 0.0).tolist() == [[1.0, 0.0, 0.0]]
    ratio = distribution(logits, 0.5)[0, 0] / distribution(logits, 0.5)[0, 1]
    assert float(ratio) == pytest.approx(np.exp(2.0), rel=1e-5)


def test_tasks_are_the_same_each_time_and_large_enough() -> None:
    first = tasks()
    assert first == tasks()
    for items in first.values():
        assert len({item.asked for item in items}) == len(items) >= 100
        assert not any(item.asked in item.shown for item in items)
        assert all(item.answer.startswith(" ") and item.answer.endswith("\n") for item in items)
