"""Class offsets of a noise field: every level answers each class as often as the clean model does."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from policies import Calibration, Head, Setting
from policies.calibration.balancer import balanced, shares
from policies.calibration.candidates import Candidates
from policies.field.balance import Balance

SECRET = b"the secret of this installation"
FEATURES, CLASSES = 32, 8
LEVELS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)


def skewed() -> nn.Linear:
    """Classes from common to rare, as pixels have them."""
    torch.manual_seed(0)
    layer = nn.Linear(FEATURES, CLASSES).requires_grad_(False)
    layer.bias.copy_(torch.linspace(3.0, -3.0, CLASSES))
    return layer


def inputs(count: int, seed: int = 1) -> Tensor:
    return 4.0 * torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(seed))


def fitted(
    secret: bytes = SECRET, *, balance: bool = True, seed: int = 1, field: Calibration | None = None
) -> Calibration:
    x = inputs(6000, seed)
    return Calibration.fit(secret, "model", x, skewed()(x), depth=64, balance=balance, field=field)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return fitted()


def head_of(calibration: Calibration, secret: bytes = SECRET) -> Head:
    return Head(calibration, secret, features=FEATURES, classes=CLASSES, slots=6)


def answered(calibration: Calibration, level: float, x: Tensor, secret: bytes = SECRET) -> Tensor:
    head = head_of(calibration, secret)
    head.write_everyone(Setting(level))
    return head(x, skewed()(x), head.slots_of(len(x))).logits.argmax(dim=1)  # type: ignore[no-any-return]


def apart(answers: Tensor, clean: Tensor) -> float:
    """The share of answers that would have to change for each class to be as frequent as among the clean ones."""
    return float((shares(answers, CLASSES) - shares(clean, CLASSES)).abs().sum()) / 2


def relabelled(answers: Tensor, clean: Tensor) -> float:
    """Agreement gained by giving each answered class the name that most of its inputs bear."""
    table = torch.bincount(clean * CLASSES + answers, minlength=CLASSES * CLASSES).reshape(CLASSES, CLASSES)
    return float(table.max(dim=0).values.sum() - table.diagonal().sum()) / len(clean)


def test_each_class_is_answered_as_often_as_by_the_clean_model(calibration: Calibration) -> None:
    x = inputs(8000, seed=9)
    clean, plain = skewed()(x).argmax(dim=1), fitted(balance=False)
    for level in LEVELS:
        got = answered(calibration, level, x)
        without = apart(answered(plain, level, x), clean)
        # Sampling errors of both samples; at lower levels classes whose answers are mostly wrong are held back.
        assert apart(got, clean) < (0.025 if level >= 0.7 else without)
        assert float((got == clean).float().mean()) == pytest.approx(level, abs=0.025)
    assert without > 0.1


def test_no_relabelling_of_answers_wins_back_what_it_does_without_balance() -> None:
    x = inputs(8000, seed=9)
    clean, gains = skewed()(x).argmax(dim=1), {True: 0.0, False: 0.0}
    for balance in gains:
        for number in range(2):
            secret = f"installation number {number}".encode()
            calibration = fitted(secret, balance=balance)
            gains[balance] += relabelled(answered(calibration, 0.5, x, secret), clean) / 2
    assert gains[True] < 0.4 * gains[False]


def test_a_class_that_noise_never_answers_and_one_that_is_never_meant_are_balanced_too() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = (torch.rand(5000, generator=generator) < 0.3).long()
    noisy = torch.randn(5000, 3, generator=generator) + torch.tensor([0.0, -20.0, 1.0])
    noisy[:, 1] += 16.0 * clean
    got = shares((noisy + balanced(noisy, clean, torch.zeros(3))).argmax(dim=1), 3)
    torch.testing.assert_close(got, shares(clean, 3), atol=0.01, rtol=0.0)


def test_a_class_whose_answers_are_mostly_wrong_is_answered_less() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = (torch.rand(20_000, generator=generator) < 0.05).long()
    noisy = torch.randn(20_000, 2, generator=generator) + torch.tensor([1.0, 0.0])
    answers = (noisy + balanced(noisy, clean, torch.zeros(2))).argmax(dim=1)
    assert shares(answers, 2)[1] < 0.01


def test_a_stored_balance_is_the_same_field(calibration: Calibration) -> None:
    again = Calibration.from_json(calibration.to_json())
    assert again == calibration and again.same_field(calibration)
    x = inputs(200)
    assert torch.equal(answered(again, 0.7, x), answered(calibration, 0.7, x))


def test_a_field_without_balance_or_with_another_is_another_field(calibration: Calibration) -> None:
    assert calibration.balance is not None
    moved = Balance(calibration.balance.positions, calibration.balance.offsets + 0.1)
    head = head_of(calibration)
    for other in (fitted(balance=False), replace(calibration, balance=moved)):
        assert other.length_scale == calibration.length_scale
        assert not calibration.same_field(other) and not other.same_field(calibration)
        with pytest.raises(ValueError, match="balance"):
            head.recalibrate(other)


def test_a_calibration_stored_before_there_was_balance_keeps_its_field() -> None:
    plain = fitted(balance=False)
    stored = plain.to_json().replace(', "balance": null', "")
    assert "balance" not in stored and Calibration.from_json(stored).same_field(plain)


def test_a_refit_on_other_inputs_keeps_the_offsets(calibration: Calibration) -> None:
    refit = fitted(seed=5, field=calibration)
    assert refit.same_field(calibration) and refit.curve != calibration.curve
    one, other = (c.ladder(SECRET, features=FEATURES, classes=CLASSES) for c in (calibration, refit))
    assert torch.equal(one.matrix(17_001), other.matrix(17_001))
    assert refit.position(0.7) == pytest.approx(calibration.position(0.7), abs=400)


def test_balance_is_added_to_the_ladders_own_noise(calibration: Calibration) -> None:
    plain = fitted(balance=False)
    own, bare = (c.ladder(SECRET, features=FEATURES, classes=CLASSES) for c in (calibration, plain))
    x, positions = inputs(20), torch.tensor([0, 16_000] * 10)
    assert calibration.balance is not None
    expected = bare.noise(x, positions)
    expected[positions > 0] += calibration.balance.at(16_000)
    torch.testing.assert_close(own.noise(x, positions), expected)
    torch.testing.assert_close(own.phi(x) @ own.focus_matrix(), bare.phi(x) @ bare.focus_matrix())


def test_items_at_full_utility_and_focus_are_as_without_balance(calibration: Calibration) -> None:
    x, clean = inputs(6), skewed()(inputs(6))
    items = [Setting(), Setting(0.7), Setting(1.0, {3: 0.9}), Setting(0.7, {2: -0.5}), Setting(), Setting(0.9)]
    outs = []
    for head in (head_of(calibration), head_of(fitted(balance=False))):
        head.write_all(items)
        outs.append(head(x, clean, head.slots_of(6)).logits)
    assert torch.equal(outs[0][[0, 4]], clean[[0, 4]])
    torch.testing.assert_close(outs[0][2], outs[1][2])


def test_candidates_are_refused() -> None:
    x = inputs(500)
    with pytest.raises(ValueError, match="all logits"):
        Calibration.fit(SECRET, "model", x, Candidates.of(skewed()(x), 4), depth=16, balance=True)
