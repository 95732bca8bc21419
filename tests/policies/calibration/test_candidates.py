"""Rows by their highest logits answer as whole rows do."""

import math

import pytest
import torch

from policies.answers import highest
from policies.calibration.calibration import Calibration
from policies.calibration.candidates import Candidates
from policies.calibration.delivered import Delivered
from policies.field.ladder import NoiseLadder
from policies.field.variance import POSITIONS, variance

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("position", [0, MIDDLE - 4000, MIDDLE, MIDDLE + 2000, MIDDLE + 6000, POSITIONS])
def test_few_candidates_and_the_rest_where_it_is_needed_are_the_whole_row(position: int, dtype: torch.dtype) -> None:
    """However large the noise is: the highest 8 of 400, the others looked at where one of them could win."""
    features, logits = rows()
    logits = logits.to(dtype)
    noise = LADDER.phi(features), LADDER.matrix(position), math.sqrt(variance(position))
    wanted = highest(logits.float() + noise[0] @ noise[1]) == highest(logits)
    cut = Candidates.of(logits, 8)
    whole = Candidates.of(logits, 8, lambda some: logits[some])
    assert torch.equal(whole.survives(*noise), wanted)
    mixed = whole[torch.arange(ROWS) % 3 > 0][torch.arange(100, 300)]
    chosen = (torch.arange(ROWS) % 3 > 0).nonzero()[100:300, 0]
    assert torch.equal(mixed.survives(noise[0][chosen], *noise[1:]), wanted[chosen])
    if position == MIDDLE + 2000:
        assert not torch.equal(cut.survives(*noise), wanted), "this noise does reach beyond the cut"


def test_only_rows_in_which_one_left_out_could_win_are_looked_at_whole() -> None:
    features, logits = rows()
    asked: list[int] = []

    def whole(some: torch.Tensor) -> torch.Tensor:
        asked.extend(some.tolist())
        return logits[some]

    few = Candidates.of(logits, 8, whole)
    few.survives(LADDER.phi(features), LADDER.matrix(MIDDLE - 4000), math.sqrt(variance(MIDDLE - 4000)))
    assert len(asked) < ROWS // 10 and len(set(asked)) == len(asked)


def test_rows_of_features_are_those_of_their_logits() -> None:
    features, _ = rows()
    weight = 2.0 * torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(3))
    logits = features @ weight.T
    found = Candidates.of_features(features, lambda part: part @ weight.T, 8)
    assert len(found) == ROWS and torch.equal(found.index[:, 0].long(), highest(logits))
    for position in (MIDDLE, MIDDLE + 3000):
        noise = LADDER.phi(features), LADDER.matrix(position), math.sqrt(variance(position))
        assert torch.equal(found.survives(*noise), highest(logits + noise[0] @ noise[1]) == highest(logits))


def test_among_equals_the_first_is_the_answer_as_in_the_audit() -> None:
    """Logits of bfloat16 tie often; what counts as kept must be one thing for who calibrates and who audits."""
    features, logits = rows()
    logits = (2.0 * logits).round() / 2.0
    clean = highest(logits)
    ties = (logits == logits.amax(dim=1, keepdim=True)).sum(dim=1) > 1
    assert int(ties.sum()) > 20 and torch.equal(clean, logits.argmax(dim=1))
    for most in (1, 2, 8, CLASSES):
        found = Candidates.of(logits, most, lambda some: logits[some])
        assert torch.equal(found.index[:, 0].long(), clean)
        assert all(len(set(row)) == len(row) for row in found.index.tolist())
        for position in (0, 1, MIDDLE - 3000, MIDDLE):
            noise = LADDER.phi(features), LADDER.matrix(position), math.sqrt(variance(position))
            audited = highest(logits + noise[0] @ noise[1]) == clean
            assert torch.equal(found.survives(*noise), audited)


def test_a_calibration_on_candidates_counts_ties_as_one_on_all_logits() -> None:
    features, logits = rows()
    logits = (2.0 * logits).round() / 2.0
    sample = {"depth": 16, "contention": 3, "tolerance": 0.02}
    secret = b"a secret for the tests"
    full = Calibration.fit(secret, "m", features, logits, **sample)  # type: ignore[arg-type]
    few = Calibration.fit(secret, "m", features, Candidates.of(logits, 8, lambda some: logits[some]), **sample)  # type: ignore[arg-type]
    assert few.curve == full.curve


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

    assert delivered.answers == ROWS
    for position, at in ((low - 500, low), (low, low), (high, high), (high + 500, high)):
        assert delivered(LADDER.matrix(position), position) == pytest.approx(alone(at, position), abs=1e-6)
    scale = [math.sqrt(variance(p)) for p in (low, MIDDLE, high)]
    share = (scale[1] - scale[0]) / (scale[2] - scale[0])
    expected = (1.0 - share) * alone(low, MIDDLE) + share * alone(high, MIDDLE)
    assert alone(high, MIDDLE) - alone(low, MIDDLE) > 0.1
    assert delivered(LADDER.matrix(MIDDLE), MIDDLE) == pytest.approx(expected, abs=1e-6)
