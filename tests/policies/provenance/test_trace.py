"""The field as a fingerprint: whose answers they are and at which level, and nothing claimed of anybody else's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from policies import Calibration
from policies.answers import highest
from policies.provenance.answers import WIDE, Answers
from policies.provenance.decoys import Decoys
from policies.provenance.trace import rank, trace

SECRET, OTHER = b"the secret of this installation", b"the secret of another one"
FEATURES, CLASSES, ASKED = 24, 10, 200


def model(classes: int = CLASSES) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(FEATURES, classes)


def inputs(count: int, seed: int) -> Tensor:
    return 4.0 * torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def solved(secret: bytes, classes: int = CLASSES, *, balance: bool = False, scale: float = 0.8) -> Calibration:
    x = inputs(2000, 1)
    return Calibration.fit(
        secret, "model", x, model(classes)(x), depth=48, balance=balance, relative_length_scale=scale, tolerance=0.01
    )


@torch.no_grad()
def asked(classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    x = inputs(ASKED, 2)
    return x, model(classes)(x)


def answered(calibration: Calibration, secret: bytes, level: float, classes: int = CLASSES) -> Tensor:
    """What an installation answers at a level."""
    x, logits = asked(classes)
    ladder = calibration.ladder(secret, features=FEATURES, classes=classes)
    return highest(logits + ladder.phi(x) @ ladder.matrix(calibration.position(level)))


@pytest.fixture(scope="module")
def mine() -> Calibration:
    return solved(SECRET)


@pytest.fixture(scope="module")
def decoys(mine: Calibration) -> Decoys:
    return Decoys(Answers.of(*asked(), highest(asked()[1])), mine)


@pytest.mark.parametrize("level", [0.9, 0.7, 0.5])
def test_a_levels_answers_are_traced_to_it(mine: Calibration, decoys: Decoys, level: float) -> None:
    given = answered(mine, SECRET, level)
    found = trace(Answers.of(*asked(), given), mine, SECRET, decoys=decoys)
    assert found.claimed and found.p == 1 / 2000 and found.lowest <= level <= found.highest
    assert abs(found.level - level) <= 0.02
    assert found.own == found.answers == ASKED and found.explained == found.changed > 0


def test_answers_in_part_of_another_origin_are_still_traced(mine: Calibration, decoys: Decoys) -> None:
    chance = torch.Generator().manual_seed(3)
    drawn = torch.randint(CLASSES, (ASKED,), generator=chance)
    given = torch.where(torch.rand(ASKED, generator=chance) < 0.3, drawn, answered(mine, SECRET, 0.7))
    found = trace(Answers.of(*asked(), given), mine, SECRET, decoys=decoys)
    assert found.claimed and abs(found.level - 0.7) <= 0.05 and found.own < ASKED


@pytest.mark.parametrize("level", [1.0, 0.9, 0.7, 0.5])
def test_nothing_is_claimed_of_clean_answers_or_of_another_installations(
    mine: Calibration, decoys: Decoys, level: float
) -> None:
    given = answered(solved(OTHER), OTHER, level)
    found = trace(Answers.of(*asked(), given), mine, SECRET, decoys=decoys)
    assert not found.claimed and found.p > 0.01


@pytest.mark.parametrize(("classes", "keys", "balance"), [(CLASSES, 150, False), (CLASSES, 80, True), (130, 60, False)])
def test_p_values_of_answers_that_are_nobodys_are_uniform(classes: int, keys: int, balance: bool) -> None:
    """Over keys, of fresh decoys, of those with class offsets, and of permuted ones."""
    first = solved(SECRET, classes, balance=balance, scale=1.5)
    answers = Answers.of(*asked(classes), answered(first, SECRET, 0.7, classes))[:60]
    shared = Decoys(answers, first, count=49)
    found = [rank(answers, first, f"installation number {key}".encode(), shared)[0] for key in range(keys)]
    # Binomial counts, within four standard deviations.
    for share in (0.1, 0.5):
        low = sum(p <= share for p in found)
        assert abs(low - share * keys) <= 4.0 * (keys * share * (1.0 - share)) ** 0.5


def test_class_offsets_as_served_do_not_enter_the_p_value() -> None:
    """They were solved on the clean answers: with them the own field would fit any answers better than decoys do."""
    balanced = solved(SECRET, balance=True, scale=1.5)
    assert balanced.balance is not None
    bare = replace(balanced, balance=None)
    answers = Answers.of(*asked(), answered(balanced, SECRET, 0.7))
    shared = Decoys(answers, bare, count=99)
    found, without = (trace(answers, of, SECRET, decoys=shared, levels=[0.7]) for of in (balanced, bare))
    assert found.p == without.p == 0.01
    assert found.own == ASKED > without.own  # the level's answers are those with them


def test_a_wide_layers_answers_are_traced_by_permuting_its_columns() -> None:
    classes = 3 * WIDE
    mine = solved(SECRET, classes)
    x, logits = asked(classes)
    found = trace(Answers.of(x, logits, answered(mine, SECRET, 0.7, classes)), mine, SECRET)
    assert found.claimed and found.lowest <= 0.7 <= found.highest and found.own == ASKED
    assert found.explained == found.changed
    strange = answered(solved(OTHER, classes), OTHER, 0.7, classes)
    answers = Answers.of(x, logits, strange)
    assert rank(answers, mine, SECRET, Decoys(answers, mine, count=99))[0] > 0.01


def test_levels_are_chosen_among_those_named(mine: Calibration, decoys: Decoys) -> None:
    answers = Answers.of(*asked(), answered(mine, SECRET, 0.7))
    assert trace(answers, mine, SECRET, decoys=decoys, levels=[0.5, 0.7, 0.9]).level == 0.7
    with pytest.raises(ValueError, match="levels"):
        trace(answers, mine, SECRET, decoys=decoys, levels=[1.0])


def test_parts_join_to_the_whole() -> None:
    x, logits = asked(2 * WIDE)
    given = logits.argsort(dim=1)[:, 5]
    whole = Answers.of(x, logits, given)
    joined = Answers.join([Answers.of(x[part], logits[part], given[part]) for part in (slice(0, 7), slice(7, None))])
    assert whole.index is not None and joined.index is not None
    assert torch.equal(whole.logits, joined.logits) and torch.equal(whole.index, joined.index)
    assert torch.equal(whole.clean, highest(logits)) and len(joined) == ASKED


def test_answers_that_do_not_fit_are_refused() -> None:
    x, logits = asked()
    given = highest(logits)
    with pytest.raises(ValueError, match="199 answers"):
        Answers.of(x, logits, given[1:])
    with pytest.raises(ValueError, match="classes 0 to 9"):
        Answers.of(x, logits, given + CLASSES)
    with pytest.raises(ValueError, match="there must be answers"):
        trace(replace(Answers.of(x, logits, given))[:0], solved(SECRET), SECRET)
