"""What an attacker fits learns what can be learned, and believes what it is told where there is nothing to learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from policies.attacks import LEARNERS, Corrector, stiff

CLASSES = 3


def rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [count, 6], and classes by the sign of a product: no straight line parts them."""
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1.0).long()


def right(scores: torch.Tensor, truth: torch.Tensor) -> float:
    return float((scores.argmax(dim=1) == truth).float().mean())


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_a_learner_finds_classes_that_lie_apart(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    centres, truth = 3.0 * torch.randn(CLASSES, 6, generator=generator), torch.arange(600) % CLASSES
    x = centres[truth] + torch.randn(600, 6, generator=generator)
    fitted = LEARNERS[name](x[:400], truth[:400], CLASSES)
    assert right(fitted(x[400:]), truth[400:]) > 0.9


def test_a_stiffer_regression_finds_the_same_classes_and_is_less_sure() -> None:
    x, _ = rows(600, 0)
    truth = (x[:, 0] + x[:, 1] > 0).long()
    loose, tight = (stiff(penalty)(x[:400], truth[:400], 2)(x[400:]) for penalty in (1e-3, 1.0))
    assert right(loose, truth[400:]) > 0.95 and right(tight, truth[400:]) > 0.95
    assert 5 * tight.softmax(dim=1).max(dim=1).values.sub(0.5).mean() < loose.softmax(dim=1).max(dim=1).values.mean()


@pytest.mark.parametrize("name", ["random features", "network", "nearest"])
def test_learners_that_are_not_linear_find_what_a_line_cannot(name: str) -> None:
    (x, y), (judged, truth) = rows(3000, 0), rows(1000, 1)
    line = right(LEARNERS["linear"](x, y, CLASSES)(judged), truth)
    assert right(LEARNERS[name](x, y, CLASSES)(judged), truth) > line + 0.1


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_where_inputs_tell_nothing_what_was_believed_stays(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, truth = torch.randn(900, 4, generator=generator), torch.randint(CLASSES, (900,), generator=generator)
    wrong = torch.rand(900, generator=generator) < 0.2
    believed = F.one_hot(torch.where(wrong, (truth + 1) % CLASSES, truth), CLASSES).float()
    fitted = Corrector(x[:600], believed[:600], truth[:600], LEARNERS[name])
    assert right(fitted(x[600:], believed[600:]), truth[600:]) > 0.75


def test_a_learner_gives_the_same_scores_each_time() -> None:
    x, y = rows(500, 0)
    for learner in LEARNERS.values():
        assert torch.equal(learner(x, y, CLASSES)(x), learner(x, y, CLASSES)(x))
