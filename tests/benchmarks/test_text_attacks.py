"""Attacks on text, on inputs whose right answers are known."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F

from benchmarks.attacks.text import Student
from benchmarks.attacks.text_choice_attack import FORMS, ChoiceAttack
from benchmarks.attacks.text_choices import Choices
from benchmarks.attacks.text_correctors import FullLogits, from_tokens, least_squares, ranker
from benchmarks.attacks.text_sources import Field, Fresh, SharedLadder, TiedLadder, Vocabulary
from benchmarks.attacks.text_students import linear, nearest, small_model
from benchmarks.attacks.text_victim import Clean
from policies.field.ladder import NoiseLadder
from policies.field.variance import POSITIONS, scale_of

TOKENS, WIDTH, LEVEL = 60, 16, 0.7
SIZES = {"features": WIDTH, "classes": TOKENS, "length_scale": 4.0, "depth": 64}
SECRET = b"a secret of tests only"


@cache
def words() -> Vocabulary:
    """A vocabulary in which token 2 n + 1 is token 2 n in another spelling."""
    rows = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    centred = rows - rows.mean(dim=0)
    return Vocabulary(rows, torch.arange(TOKENS) // 2 * 2, F.normalize(centred, dim=1), centred.T @ centred)


def steps(count: int, seed: int) -> Clean:
    features = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    logits, index = (features @ words().rows.T).sort(dim=1, descending=True)
    context = torch.stack([index[:, 0]] * 4, dim=1)
    return Clean(features, index, logits, features, context)


def test_every_ladder_delivers_its_level_on_other_steps() -> None:
    for columns in (None, "spelling", 0.5, 1.0):
        field = Field(0, steps(3000, 2), words(), columns)
        rows = steps(3000, 3)
        noisy = rows.logits + field(rows.features, rows.index, LEVEL)
        assert float((noisy.argmax(dim=1) == 0).float().mean()) == pytest.approx(LEVEL, abs=0.06)


def test_levels_of_one_source_lie_on_the_ladder_of_the_product() -> None:
    field = Field(0, steps(500, 2), words())
    assert torch.equal(field.matrix(LEVEL), field.ladder.matrix(field.position(LEVEL)))


def test_fresh_noise_differs_from_query_to_query_and_a_fields_does_not() -> None:
    sample = steps(500, 2)
    fresh, field = Fresh(0, sample), Field(0, sample, words())
    for source, same in ((fresh, False), (field, True)):
        one, two = (source(sample.features, sample.index, LEVEL) for _ in range(2))
        assert torch.equal(one, two) is same


def test_tied_tokens_have_one_noise_along_the_whole_path() -> None:
    ladder = TiedLadder(words().spelling, SECRET, "text", **SIZES)
    for position in (POSITIONS // 2, POSITIONS // 2 + 3):
        matrix = ladder.matrix(position)
        assert torch.equal(matrix[:, 0::2], matrix[:, 1::2])
        assert not torch.equal(matrix[:, 0], matrix[:, 2])


def test_shared_tokens_correlate_as_their_directions_do_and_keep_their_variance() -> None:
    like = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 1.0]]), dim=1)
    sizes = SIZES | {"classes": 4, "depth": 40000}
    matrix = SharedLadder(0.8, like, SECRET, "text", **sizes).matrix(POSITIONS // 2) / scale_of(POSITIONS // 2)
    expected = 0.8 * (like @ like.T) + 0.2 * torch.eye(4)
    assert torch.allclose(matrix.T @ matrix / 40000, expected, atol=0.03)


def test_all_logits_of_more_steps_than_the_span_is_wide_give_the_clean_ones_away() -> None:
    ladder = NoiseLadder(SECRET, "text", **SIZES | {"depth": 8})
    matrix = ladder.matrix(POSITIONS // 2)
    matrix = matrix * (words().rows.std() * 4.0 / matrix.std())
    seen = FullLogits(words().rows, words().gram, matrix)
    taught, asked = steps(300, 4), steps(500, 5)
    noisy, clean = seen.places(taught.features, ladder.phi(taught.features))
    places, _ = seen.places(asked.features, ladder.phi(asked.features))

    def agreement(wrong: torch.Tensor) -> float:
        return float((seen.logits(places - places @ wrong, asked.index).argmax(dim=1) == 0).float().mean())

    own = agreement(torch.zeros(WIDTH + 8, WIDTH + 8))
    whole = least_squares(noisy, noisy - clean)
    tokens = from_tokens(
        noisy, seen.directions(taught.index), seen.logits(noisy, taught.index), torch.zeros(300, dtype=torch.long)
    )
    assert own < 0.8
    assert agreement(whole) > 0.97
    assert own + 0.03 < agreement(tokens) <= agreement(whole)


@pytest.mark.parametrize("make", [linear, nearest])
def test_a_student_learns_clean_answers_from_features(make: Student) -> None:
    taught, asked = steps(2000, 6), steps(500, 7)
    score = make(taught.features, taught.tokens, TOKENS)
    assert float((score(asked.features).argmax(dim=1) == asked.tokens).float().mean()) > 0.4


def test_a_small_model_learns_what_the_tokens_before_a_step_say() -> None:
    taught, asked = steps(1500, 8), steps(300, 9)
    score = small_model(taught.context, taught.tokens, TOKENS)
    assert float((score(asked.context).argmax(dim=1) == asked.tokens).float().mean()) > 0.8


@pytest.mark.parametrize(("hidden", "solved"), [(0, False), (16, True)])
def test_a_ranker_needs_a_hidden_layer_for_what_no_weighing_tells(hidden: int, solved: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    right = torch.randint(3, (1000,), generator=generator)
    first = torch.randint(2, (1000, 3, 1), generator=generator).float() * 2 - 1
    agrees = F.one_hot(right, 3)[..., None].float() * 2 - 1
    seen = torch.cat([first, first * agrees], dim=2)
    found = ranker(seen[:800], right[:800], hidden)(seen[800:]).argmax(dim=1)
    assert (float((found == right[800:]).float().mean()) > 0.9) is solved


def choices(right: torch.Tensor) -> Choices:
    """Forms [V, N] bool that are right or wrong; contender 0 is first, 1 the other class, 2 neither."""
    truth = torch.arange(right.shape[1]) % 2
    first = torch.where(right, truth, 1 - truth)
    meaning = torch.stack([first, 1 - first, torch.full_like(first, -1)], dim=2)
    logits = torch.tensor([30.0, 0.0, -30.0]).expand(meaning.shape)
    return Choices(torch.zeros(*right.shape, 2), torch.zeros_like(meaning), logits, meaning, truth)


def test_a_vote_over_forms_outdoes_one_form_and_labels_find_the_forms_that_are_right() -> None:
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(FORMS + 4, 400, generator=generator) < 0.7
    attack = ChoiceAttack(None, choices(right), LEVEL)
    assert attack.single() == pytest.approx(0.7, abs=0.03)
    assert attack.voted() > 0.85
    right[: FORMS // 2 + 1] = torch.rand(FORMS // 2 + 1, 400, generator=generator) < 0.35
    right[FORMS - 1] = True
    misled = ChoiceAttack(None, choices(right), LEVEL)
    assert misled.voted() < 0.8
    assert misled.chosen() == 1.0
    assert misled.corrected() > 0.95


def test_a_draft_is_repaired_by_the_form_that_shows_it_and_judged_with_its_own_vote_between() -> None:
    right = torch.zeros(FORMS + 4, 8, dtype=torch.bool)
    right[FORMS] = True  # shown the draft 0, the model corrects it; shown 1 it does not
    attack = ChoiceAttack(None, choices(right), LEVEL)
    wrong_is_zero = torch.arange(8) % 2 == 1
    assert attack.drafted() == 0.0
    assert attack.repaired() == float(wrong_is_zero.float().mean())
    right[FORMS + 2 :] = True
    assert ChoiceAttack(None, choices(right), LEVEL).judged() == 1.0
    right[FORMS + 3] = False
    assert ChoiceAttack(None, choices(right), LEVEL).judged() == 0.0
