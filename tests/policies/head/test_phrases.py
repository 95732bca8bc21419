"""Sequences answered seat by seat, and phrases as the tokens that spell them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policies import Calibration, Head, Setting
from policies.head.focus import Target

H, V, SEATS = 16, 40, 6
SECRET = b"a secret for the tests"
CALIBRATION = Calibration(
    fingerprint="tiny",
    length_scale=4.0,
    depth=32,
    curve=((0, 1.0), (16_000, 0.9), (18_000, 0.5)),
    favour_gap=(2.0,),
    avoid_gap=(1.0,),
    answers=100,
)
NEW, YORK, CITY, OTHER = 3, 7, 11, 20


def head_of(slots: int = SEATS) -> Head:
    return Head(CALIBRATION, SECRET, features=H, classes=V, slots=slots, contention=10)


@pytest.fixture
def head() -> Head:
    return head_of()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def seated(settings: dict[int, Setting]) -> Head:
    made = head_of()
    for seat, setting in settings.items():
        made.write(seat, setting)
    return made


def test_rows_of_seats_are_answered_as_items_of_a_batch() -> None:
    words: list[dict[int, float]] = [{}, {4: 0.9}, {4: -0.5, 9: 0.7}]
    asked = {seat: Setting(level, words[seat % 3]) for seat, level in enumerate([1.0, 0.9, 0.5, 0.9, 0.7, 1.0])}
    head, items = seated(asked), head_of(64)
    features, logits = torch.randn(64, H), torch.randn(64, V)
    seats = torch.randint(0, SEATS, (64,))
    got = head(features, logits, seats)
    items.write_all([asked[seat] for seat in seats.tolist()])
    wanted = items(features, logits, items.slots_of(64))
    torch.testing.assert_close(got.logits, wanted.logits)
    torch.testing.assert_close(got.utility, wanted.utility)
    gold = seats == 0
    assert torch.equal(got.logits[gold], logits[gold]) and bool(gold.any())
    assert not torch.equal(got.utility[seats == 2], logits[seats == 2])


def test_a_token_and_a_target_without_a_prefix_are_one() -> None:
    features, logits, seats = torch.randn(8, H), torch.randn(8, V), torch.zeros(8, dtype=torch.int64)
    one, other = seated({0: Setting(1.0, {4: 0.9})}), seated({0: Setting(1.0, {Target(4): 0.9})})
    assert torch.equal(one(features, logits, seats).logits, other(features, logits, seats).logits)


def test_a_step_compiles_as_one_graph() -> None:
    focus: dict[int | Target, float] = {4: 0.9, Target(YORK, (NEW,)): 0.5}
    head = seated({1: Setting(0.9, focus), 2: Setting(0.5), 3: Setting(0.5)})
    features, logits = torch.randn(8, H), torch.randn(8, V)
    seats = torch.tensor([0, 1, 2, 1, 2, 0, SEATS, 1])
    torch.compiler.reset()
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(features, logits, seats).logits, head(features, logits, seats).logits)


def test_rows_of_no_seat_keep_their_logits() -> None:
    head = seated({0: Setting(0.5, {4: 0.9, Target(YORK, (NEW,)): -0.5})})
    features, logits = torch.randn(3, H), torch.randn(3, V)
    got = head(features, logits, torch.tensor([0, SEATS, SEATS])).logits
    assert torch.equal(got[1:], logits[1:]) and not torch.equal(got[0], logits[0])


def test_tables_of_focus_grow_by_few_steps_and_serve_again(head: Head) -> None:
    widths = []
    for count in range(20):
        head.write(0, Setting(1.0, {token: 0.5 for token in range(count)}))
        widths.append(len(head.focus.targets))
    assert widths == [0, 1, 2, 4, 4, *[8] * 4, *[16] * 8, *[24] * 3]
    assert head.focus.columns.shape == (32, 24) and len(set(head.focus.targets.tolist())) == 24
    place = head.focus.delta.data_ptr()
    head.write(0, Setting(1.0, {token: 0.9 for token in range(17)}))
    head.write(1, Setting(1.0, {18: -0.5}))
    head.write(0, Setting(1.0, {token: 0.9 for token in range(1, 17)}))
    assert head.focus.delta.data_ptr() == place, "written in place while they have room for what is asked"
    assert not head.focus.delta[1, :18].any() and float(head.focus.delta[1, 18]) < 0.0
    assert not head.focus.delta[2:].any()
    head.write(0, Setting())
    assert len(head.focus.targets) == 1, "and given up when it is much less"


def test_who_comes_changes_no_answer_of_who_is_there(head: Head) -> None:
    features, logits, seats = torch.randn(50, H), torch.randn(50, V), torch.zeros(50, dtype=torch.int64)
    head.write(0, Setting(1.0, {Target(YORK, (NEW,)): 0.9, Target(NEW): 0.5}), [NEW])
    alone = head(features, logits, seats).logits
    head.write(1, Setting(0.5, {Target(token, (OTHER, NEW)): -0.9 for token in range(12)}), [OTHER, NEW])
    head.write(2, Setting(0.9, {token: 0.9 for token in range(V - 5)}))
    torch.testing.assert_close(head(features, logits, seats).logits, alone)


def test_a_seat_that_is_given_anew_has_forgotten_its_text(head: Head) -> None:
    setting = Setting(1.0, {Target(YORK, (NEW,)): 0.99})
    row = torch.zeros(1, V)
    row[0, OTHER] = 20.0
    head.write(0, setting, [NEW])
    assert int(head(torch.randn(1, H), row, torch.tensor([0])).logits[0, YORK] > 0.0)
    head.write(0, setting, [])
    assert torch.equal(head(torch.randn(1, H), row, torch.tensor([0])).logits, row)


def test_a_step_whose_tables_changed_before_its_tokens_are_told_is_remembered(head: Head) -> None:
    head.write(0, Setting(1.0, {Target(token, PHRASE[:at]): 0.99 for at, token in enumerate(PHRASE)}))
    head(torch.randn(1, H), torch.zeros(1, V), torch.tensor([0]))
    head.write(1, Setting(1.0, {token: 0.5 for token in range(30)}))
    head.chosen(torch.tensor([NEW]), torch.tensor([0]))
    assert head.focus.history[0, -1] == NEW and head.focus.history[1, -1] != NEW


class Writer:
    """One sequence that takes the likeliest token of logits that are given, step by step."""

    def __init__(self, head: Head, focus: dict[int | Target, float], prompt: list[int] | None = None) -> None:
        self.head = head
        head.write(0, Setting(1.0, focus), prompt or [])

    def next(self, **logits: float) -> int:
        row = torch.zeros(1, V)
        for name, value in logits.items():
            row[0, {"new": NEW, "york": YORK, "city": CITY, "other": OTHER}[name]] = value
        slots = torch.tensor([0])
        out: Tensor = self.head(torch.randn(1, H), row, slots).logits
        token = out.argmax(dim=1)
        self.head.chosen(token, slots)
        return int(token)


PHRASE = (NEW, YORK, CITY)
FAVOUR: dict[int | Target, float] = {Target(token, PHRASE[:at]): 0.99 for at, token in enumerate(PHRASE)}


def test_a_favoured_phrase_that_focus_began_is_completed_whatever_the_margin(head: Head) -> None:
    begun = 0
    for seed in range(40):
        torch.manual_seed(seed)
        writer = Writer(head, FAVOUR)
        if writer.next(other=2.0, new=1.0) == NEW:
            begun += 1
            assert writer.next(other=30.0) == YORK
            assert writer.next(other=30.0) == CITY
    assert begun > 20


def test_a_phrase_that_the_model_began_is_completed_as_often_as_its_strength(head: Head) -> None:
    for strength in (0.3, 0.9):
        entries = {entry: strength for entry in FAVOUR}
        completed = 0
        for seed in range(150):
            torch.manual_seed(seed)
            writer = Writer(head, entries)
            assert writer.next(new=20.0) == NEW
            completed += writer.next(other=20.0) == YORK
        assert completed / 150 == pytest.approx(strength, abs=0.12)


def test_a_phrase_begun_in_the_prompt_counts_and_another_text_does_not(head: Head) -> None:
    completed = {prompt: 0 for prompt in ((), (NEW,), (NEW, OTHER))}
    for prompt in completed:
        for seed in range(60):
            torch.manual_seed(seed)
            completed[prompt] += Writer(head, FAVOUR, prompt).next(other=20.0) == YORK
    assert completed[()] == completed[(NEW, OTHER)] == 0 and completed[(NEW,)] > 50


def test_an_avoided_phrase_may_begin_and_is_not_completed(head: Head) -> None:
    for strength in (0.3, 0.9):
        gave_way = alone = 0
        for seed in range(150):
            torch.manual_seed(seed)
            writer = Writer(head, {Target(YORK, (NEW,)): -strength})
            alone += writer.next(york=20.0, other=5.0) == YORK
            assert writer.next(new=20.0) == NEW
            gave_way += writer.next(york=20.0, other=5.0) == OTHER
        assert alone == 150
        assert gave_way / 150 == pytest.approx(strength, abs=0.12)


def after(focus: dict[int | Target, float], row: Tensor, features: Tensor) -> Tensor:
    """Logits of a text that ends in `OTHER NEW`, [1, V]."""
    head = head_of()
    head.write(0, Setting(1.0, focus), [OTHER, NEW])
    return head(features, row, torch.tensor([0])).logits


def test_phrases_that_end_in_one_token_do_not_add_up_on_it() -> None:
    """Or one word under a limit would have all of it, by phrases that end in it."""
    row = torch.zeros(1, V)
    for sign, first in ((1, OTHER), (-1, YORK)):
        row[0] = 0.0
        row[0, first] = 20.0
        one: dict[int | Target, float] = {Target(YORK, (OTHER, NEW)): sign * 0.3}
        several = {**one, Target(YORK, (NEW,)): sign * 0.2}
        alike = {**one, Target(YORK, (NEW,)): sign * 0.3}
        for seed in range(20):
            torch.manual_seed(seed)
            features = torch.randn(1, H)
            alone = after(one, row, features)
            assert not torch.equal(alone, row)
            torch.testing.assert_close(after(several, row, features), alone)
            torch.testing.assert_close(after(alike, row, features), alone)


def test_a_word_and_a_phrase_that_ends_in_it_avoid_it_no_more_often_than_the_stronger() -> None:
    row = torch.zeros(1, V)
    row[0, YORK], row[0, OTHER] = 2.0, 0.5
    gone = {"word": 0, "phrase": 0, "both": 0}
    for seed in range(150):
        torch.manual_seed(seed)
        features = torch.randn(1, H)
        word, phrase = {Target(YORK): -0.3}, {Target(YORK, (NEW,)): -0.3}
        gave_way = {
            name: int(after({**focus}, row, features).argmax()) != YORK
            for name, focus in (("word", word), ("phrase", phrase), ("both", word | phrase))
        }
        assert gave_way["both"] == (gave_way["word"] or gave_way["phrase"])
        for name, gave in gave_way.items():
            gone[name] += gave
    assert 0 < gone["both"] == max(gone.values()) < 75
