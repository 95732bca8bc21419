"""The attackers' arithmetic, on inputs whose right answers are known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from PIL import Image

from benchmarks.attacks.label_attack import LabelAttack
from benchmarks.attacks.label_features import LabelFeatures
from benchmarks.attacks.label_students import Encoded, LabelStudents
from benchmarks.attacks.queries import usual, wide
from benchmarks.attacks.records import Records
from benchmarks.attacks.smoothing import window_means
from benchmarks.attacks.sources import Field, Fresh, Ladder, Sample, Scaled, Source, TenantKeys
from policies.attacks.answers import best_combination, disclosed, label_and_score, votes, won_back
from policies.attacks.corrector import Corrector

CLASSES, WIDTH, LEVEL = 5, 12, 0.7
HEAD = torch.randn(WIDTH, CLASSES, generator=torch.Generator().manual_seed(0))
FIELD = Field(0.6, 64)


def inputs(count: int, queries: int, seed: int) -> torch.Tensor:
    """Features [count, queries, WIDTH]: near-duplicates lie a 25th as far apart as inputs."""
    generator = torch.Generator().manual_seed(seed)
    scatter = torch.randn(count, queries, WIDTH, generator=generator)
    return torch.randn(count, 1, WIDTH, generator=generator) + 0.04 * scatter


@cache
def attack(make: type[Fresh | Ladder | TenantKeys | Scaled]) -> LabelAttack:
    """On 1,500 inputs of a model that is always right: enough for shares to vary little from seed to seed."""
    judged, examples, both = inputs(1500, 40, 1), inputs(1500, 1, 2)[:, 0], inputs(200, 20, 3)
    truth = (judged[:, 0] @ HEAD).argmax(dim=1)
    example_truth, both_truth = (examples @ HEAD).argmax(dim=1), (both[:, 0] @ HEAD).argmax(dim=1)
    data = LabelFeatures(judged, judged, truth, examples, example_truth, both, both_truth, judged[:, :3], examples)
    sampled = inputs(2000, 1, 4)[:, 0]
    sample = Sample(sampled, sampled @ HEAD)
    source: Source = make(0, sample) if make is Fresh else make(0, FIELD, sample)  # type: ignore[call-arg, arg-type]
    return LabelAttack(source, LEVEL, data, lambda rows: rows @ HEAD, CLASSES)


def test_repeats_win_back_fresh_noise_but_nothing_from_the_ladder() -> None:
    fresh, ladder = attack(Fresh), attack(Ladder)
    assert fresh.single() == pytest.approx(LEVEL, abs=0.06)
    assert ladder.single() == pytest.approx(LEVEL, abs=0.06)
    assert fresh.share(fresh.repeats()) > 0.6
    assert ladder.share(ladder.repeats(5)) == 0.0


def test_near_duplicates_win_back_fresh_noise_but_little_from_the_ladder() -> None:
    fresh, ladder = attack(Fresh), attack(Ladder)
    assert fresh.share(fresh.vote(fresh.judged)) > 0.5
    assert abs(ladder.share(ladder.vote(ladder.judged))) < 0.15


def test_accounts_win_back_a_key_per_tenant_but_nothing_from_the_ladder() -> None:
    keys, ladder = attack(TenantKeys), attack(Ladder)
    assert keys.share(keys.accounts(24)) > 0.4
    assert ladder.share(ladder.accounts(3)) == 0.0


def test_levels_together_give_scaled_noise_away_but_not_the_ladder() -> None:
    scaled, ladder = attack(Scaled), attack(Ladder)
    assert scaled.share(scaled.combined_levels()) > 0.9
    # Of a field of 64 waves, the increments of levels correlate a little by chance.
    assert abs(ladder.share(ladder.combined_levels())) < 0.35


def test_refits_of_the_ladder_win_back_nothing() -> None:
    ladder = attack(Ladder)
    assert abs(ladder.share(ladder.refits(3))) < 0.2


def test_a_student_wins_from_fresh_noise_what_it_does_not_from_a_smooth_field() -> None:
    fresh, smooth = attack(Fresh), attack(Ladder)
    wide = Field(3.0, 256)
    smooth = replace(smooth, source=Ladder(0, wide, smooth.source.sample))  # type: ignore[attr-defined]
    shares = {}
    for name, one in (("fresh", fresh), ("smooth", smooth)):
        encoder = Encoded(one.data.examples, one.data.examples, one.data.judged[:, 0], 10)
        shares[name] = LabelStudents(one, {"own": encoder}, {}).fitted("own", 1000)
    assert shares["fresh"] > 0.6
    assert shares["smooth"] < shares["fresh"] / 2


def test_a_corrector_undoes_what_is_the_same_for_all_inputs_and_not_what_is_independent() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(CLASSES, (2000,), generator=generator)
    logits = 4.0 * torch.nn.functional.one_hot(truth, CLASSES) + torch.randn(2000, CLASSES, generator=generator)
    constant = logits.roll(1, dims=1)
    own = torch.nn.functional.one_hot(constant.argmax(dim=1), CLASSES).float()
    fitted = Corrector(label_and_score(constant[:1000]), own[:1000], truth[:1000])
    corrected = fitted(label_and_score(constant[1000:]), own[1000:]).argmax(dim=1)
    assert float((corrected == truth[1000:]).float().mean()) > 0.9
    noise = torch.randint(CLASSES, (2000,), generator=generator)
    own = torch.nn.functional.one_hot(noise, CLASSES).float()
    fitted = Corrector(own[:1000], own[:1000], truth[:1000])
    assert float((fitted(own[1000:], own[1000:]).argmax(dim=1) == truth[1000:]).float().mean()) < 0.35


def test_what_answers_show_is_the_highest_labels_and_rounded() -> None:
    shown = disclosed(torch.tensor([[2.0, 1.0, 0.0]]), labels=2, digits=1)
    assert torch.allclose(shown, torch.tensor([[0.7, 0.2, 0.0]]))
    counted = votes(torch.tensor([[1, 1, 0, 2]]), 3)
    assert torch.equal(counted, torch.tensor([[0.25, 0.5, 0.25]]))
    assert won_back(0.8, 0.6, 1.0) == pytest.approx(0.5)


def test_the_best_combination_of_scaled_noise_is_the_clean_answer() -> None:
    clean, noise = torch.randn(2, 50, CLASSES, generator=torch.Generator().manual_seed(0))
    weights = best_combination([clean + noise, clean + 3.0 * noise], clean)
    assert torch.allclose(weights, torch.tensor([1.5, -0.5]), atol=1e-4)


def test_near_duplicates_are_the_same_everywhere_and_the_first_is_the_picture() -> None:
    picture = Image.effect_noise((32, 32), 60).convert("RGB")
    for way in (wide, lambda image, number: usual(image, number, 1)):
        assert way(picture, 0).tobytes() == picture.tobytes()
        assert way(picture, 3).tobytes() == way(picture, 3).tobytes() != picture.tobytes()
        assert way(picture, 3).size == picture.size


def test_the_table_gives_mean_and_spread_over_secrets() -> None:
    records = Records()
    for share in (0.1, 0.3):
        records.add("vote", "ladder", share)
    records.add("vote", "fresh", -0.001)
    assert records.table().splitlines()[2] == "| vote | 0.20 ± 0.14 | 0.00 |"


def test_window_means_stop_at_the_border() -> None:
    means = window_means(torch.tensor([[[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]]]), 3)
    assert torch.allclose(means, torch.tensor([[[2.5, 4.0, 5.0], [2.5, 4.0, 5.0]]]))
    assert torch.allclose(window_means(means, 1), means)
