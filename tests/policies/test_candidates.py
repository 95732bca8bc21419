"""Rows by their highest logits answer as whole rows do."""

import math

import pytest
import torch

from policies.candidates import Candidates
from policies.delivered import Delivered
from policies.ladder import POSITIONS, NoiseLadder, variance

FEATURES, CLASSES, ROWS = 16, 400, 600
LADDER = NoiseLadder(b"a secret for the tests", "m", features=FEATURES, classes=CLASSES, length_scale=4.0, depth=16)
MIDDLE = POSITIONS // 2


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, FEATURES, generator=generator), 2.0 * torch.randn(ROWS, CLASSES, generator=generator)


def survivors(features: torch.Tensor, logits: torch.Tensor, position: int) -> torch.Tensor:
    noisy = logits + LADDER.noise(features, torch.full((len(features),), position))
    return noisy.argmax(dim=1) == logits.argmax(dim=1)


@pytest.mark.parametrize("position", [0, MIDDLE - 3000, MIDDLE, POSITIONS])
def test_all_candidates_are_the_whole_row(position: int) -> None:
    features, logits = rows()
    same = Candidates.of(logits, CLASSES).survives(
        LADDER.phi(features), LADDER.matrix(position), math.sqrt(variance(position))
    )
    assert torch.equal(same, survivors(features, logits, position))


def test_the_highest_quarter_is_enough_where_half_of_the_answers_survive() -> None:
    features, logits = rows()
    noise = LADDER.phi(features), LADDER.matrix(MIDDLE), math.sqrt(variance(MIDDLE))
    wanted = survivors(features, logits, MIDDLE)
    assert 0.3 < float(wanted.float().mean()) < 0.7
    assert torch.equal(Candidates.of(logits, CLASSES // 4).survives(*noise), wanted)
    assert not torch.equal(Candidates.of(logits, 2).survives(*noise), wanted)


def test_rows_are_taken_and_joined() -> None:
    found = Candidates.of(rows()[1].half(), 8)
    again = Candidates.join([found[torch.arange(100)], found[torch.arange(ROWS) >= 100]])
    assert found.logits.dtype == torch.float32 and len(again) == ROWS and again.classes == CLASSES
    assert torch.equal(again.logits, found.logits) and torch.equal(again.index, found.index)


def test_a_position_is_judged_on_the_rows_given_nearest_to_it() -> None:
    """Rows of two positions whose answers are of unlike certainty, so that it shows which were judged."""
    (features, logits), low, high = rows(), MIDDLE - 2000, MIDDLE + 2000
    given = torch.tensor([low, high]).repeat(ROWS // 2)
    mixed = torch.where((given == high)[:, None], 3.0 * logits, logits)
    delivered = Delivered(LADDER.phi(features), Candidates.of(mixed, CLASSES), at=given)

    def alone(at: int, position: int) -> float:
        return float(survivors(features[given == at], mixed[given == at], position).float().mean())

    assert delivered.rows == ROWS
    for position, at in ((low - 500, low), (low, low), (high, high), (high + 500, high)):
        assert delivered(LADDER.matrix(position), position) == pytest.approx(alone(at, position), abs=1e-6)
    scale = [math.sqrt(variance(p)) for p in (low, MIDDLE, high)]
    share = (scale[1] - scale[0]) / (scale[2] - scale[0])
    expected = (1.0 - share) * alone(low, MIDDLE) + share * alone(high, MIDDLE)
    assert alone(high, MIDDLE) - alone(low, MIDDLE) > 0.1
    assert delivered(LADDER.matrix(MIDDLE), MIDDLE) == pytest.approx(expected, abs=1e-6)
