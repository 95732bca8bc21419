"""All running sequences at once, against `ModulatedLayer` item by item, and phrases as token sequences."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from deployments.engines.text_modulation import TextModulation, TextTerms
from deployments.engines.words import FocusEntry, focus_entries, spellings
from policies.calibration import Calibration
from policies.errors import InvalidRequest
from policies.layer import ModulatedLayer, RowTerms

H, V, SEATS = 16, 40, 6
SECRET = b"a secret for the tests"
CALIBRATION = Calibration(
    fingerprint="tiny",
    length_scale=4.0,
    depth=32,
    curve=((0, 1.0), (16_000, 0.9), (18_000, 0.5)),
    favour_gap=(2.0,),
    avoid_gap=(1.0,),
    rows=100,
)
NEW, YORK, CITY, OTHER = 3, 7, 11, 20


@pytest.fixture
def layer() -> ModulatedLayer:
    torch.manual_seed(0)
    return ModulatedLayer(nn.Linear(H, V).requires_grad_(False), CALIBRATION, SECRET, contention=10)


def modulation(layer: ModulatedLayer, terms: dict[int, TextTerms]) -> TextModulation:
    made = TextModulation(layer, SEATS)
    for seat, own in terms.items():
        made.prepare(own)
        made.write(seat, own, [])
    return made


def step(made: TextModulation, layer: ModulatedLayer, terms: dict[int, TextTerms], seats: list[int]) -> Tensor:
    features = torch.randn(len(seats), H)
    return made.modulate(features, layer.final(features), torch.tensor(seats), made.plan(terms)).logits


def test_rows_are_answered_as_the_layer_answers_items(layer: ModulatedLayer) -> None:
    words = [{}, {4: 0.9}, {4: -0.5, 9: 0.7}]
    asked = {seat: (level, words[seat % 3]) for seat, level in enumerate([1.0, 0.9, 0.5, 0.9, 0.7, 1.0])}
    terms = {
        seat: TextTerms(level, {FocusEntry(t): f for t, f in word.items()}) for seat, (level, word) in asked.items()
    }
    made = modulation(layer, terms)
    features = torch.randn(64, H)
    logits = layer.final(features)
    slots = torch.randint(0, SEATS, (64,))
    got = made.modulate(features, logits, slots, made.plan(terms))
    rows = layer.compile([RowTerms(*asked[seat]) for seat in slots.tolist()])
    wanted = layer.modulate(features, logits, rows)
    torch.testing.assert_close(got.logits, wanted.logits)
    torch.testing.assert_close(got.utility, wanted.utility)
    gold = torch.isin(slots, torch.tensor([0]))
    assert torch.equal(got.logits[gold], logits[gold]) and bool(gold.any())
    assert not torch.equal(got.utility[slots == 2], logits[slots == 2])


def test_nothing_is_touched_where_nobody_is_modulated(layer: ModulatedLayer) -> None:
    terms = {0: TextTerms(), 1: TextTerms()}
    made = modulation(layer, terms)
    features = torch.randn(2, H)
    logits = layer.final(features)
    got = made.modulate(features, logits, torch.tensor([0, 1]), made.plan(terms))
    assert got.logits is logits and got.utility is logits


def test_a_step_compiles_as_one_graph(layer: ModulatedLayer) -> None:
    focus = {FocusEntry(4): 0.9, FocusEntry(YORK, (NEW,)): 0.5}
    terms = {0: TextTerms(), 1: TextTerms(0.9, focus), 2: TextTerms(0.5), 3: TextTerms(0.5)}
    made = modulation(layer, terms)
    features, slots, plan = torch.randn(8, H), torch.tensor([0, 1, 2, 1, 2, 0, SEATS, 1]), made.plan(terms)
    logits = layer.final(features)
    compiled = torch.compile(lambda x, z: made.modulate(x, z, slots, plan).logits, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(features, logits), made.modulate(features, logits, slots, plan).logits)


def test_a_level_is_laid_out_once_for_its_sequences_and_given_up_by_the_last(layer: ModulatedLayer) -> None:
    made = TextModulation(layer, SEATS)
    with ThreadPoolExecutor(8) as pool:
        held = list(pool.map(made.prepare, [TextTerms(0.5)] * 16 + [TextTerms(0.9)]))
    assert held[0] is not None and all(one is held[0] for one in held[:-1]) and held[-1] is not held[0]
    plan = made.plan({0: TextTerms(0.5), 1: TextTerms(0.9)})
    assert {id(level.matrix) for level in plan.levels} == {id(held[0]), id(held[-1])}
    left = weakref.ref(held[0])
    held.clear()
    gc.collect()
    assert left() is not None
    del plan
    gc.collect()
    assert left() is None


def test_rows_of_no_seat_keep_their_logits(layer: ModulatedLayer) -> None:
    terms = {0: TextTerms(0.5, {FocusEntry(4): 0.9})}
    made = modulation(layer, terms)
    features = torch.randn(3, H)
    logits = layer.final(features)
    got = made.modulate(features, logits, torch.tensor([0, SEATS, SEATS]), made.plan(terms))
    assert torch.equal(got.logits[1:], logits[1:]) and not torch.equal(got.logits[0], logits[0])


class Writer:
    """One sequence that takes the likeliest token of logits that are given, step by step."""

    def __init__(
        self, layer: ModulatedLayer, entries: dict[FocusEntry, float], prompt: list[int] | None = None
    ) -> None:
        terms = {0: TextTerms(1.0, entries)}
        self.layer, self.made = layer, modulation(layer, terms)
        self.made.write(0, terms[0], prompt or [])
        self.plan = self.made.plan(terms)

    def next(self, **logits: float) -> int:
        row = torch.zeros(1, V)
        for name, value in logits.items():
            row[0, {"new": NEW, "york": YORK, "city": CITY, "other": OTHER}[name]] = value
        slots = torch.tensor([0])
        out = self.made.modulate(torch.randn(1, H), row, slots, self.plan).logits
        token = out.argmax(dim=1)
        self.made.chosen(token, slots, self.plan)
        return int(token)


PHRASE = (NEW, YORK, CITY)
FAVOUR = {FocusEntry(token, PHRASE[:at]): 0.99 for at, token in enumerate(PHRASE)}


def test_a_favoured_phrase_that_focus_began_is_completed_whatever_the_margin(layer: ModulatedLayer) -> None:
    begun = 0
    for seed in range(40):
        torch.manual_seed(seed)
        writer = Writer(layer, FAVOUR)
        if writer.next(other=2.0, new=1.0) == NEW:
            begun += 1
            assert writer.next(other=30.0) == YORK
            assert writer.next(other=30.0) == CITY
    assert begun > 20


def test_a_phrase_that_the_model_began_is_completed_as_often_as_its_strength(layer: ModulatedLayer) -> None:
    for strength in (0.3, 0.9):
        entries = {entry: strength for entry in FAVOUR}
        completed = 0
        for seed in range(150):
            torch.manual_seed(seed)
            writer = Writer(layer, entries)
            assert writer.next(new=20.0) == NEW
            completed += writer.next(other=20.0) == YORK
        assert completed / 150 == pytest.approx(strength, abs=0.12)


def test_a_phrase_begun_in_the_prompt_counts_and_another_text_does_not(layer: ModulatedLayer) -> None:
    completed = {prompt: 0 for prompt in ((), (NEW,), (NEW, OTHER))}
    for prompt in completed:
        for seed in range(60):
            torch.manual_seed(seed)
            completed[prompt] += Writer(layer, FAVOUR, prompt).next(other=20.0) == YORK
    assert completed[()] == completed[(NEW, OTHER)] == 0 and completed[(NEW,)] > 50


def test_an_avoided_phrase_may_begin_and_is_not_completed(layer: ModulatedLayer) -> None:
    for strength in (0.3, 0.9):
        gave_way = alone = 0
        for seed in range(150):
            torch.manual_seed(seed)
            writer = Writer(layer, {FocusEntry(YORK, (NEW,)): -strength})
            alone += writer.next(york=20.0, other=5.0) == YORK
            assert writer.next(new=20.0) == NEW
            gave_way += writer.next(york=20.0, other=5.0) == OTHER
        assert alone == 150
        assert gave_way / 150 == pytest.approx(strength, abs=0.12)


class Letters:
    """A tokenizer whose words of up to three letters are one token, and longer ones a token for every three."""

    all_special_ids = (0,)

    def __init__(self) -> None:
        self.ids: dict[str, int] = {"": 0}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        words = text.replace(" ", "\n ").split("\n")
        pieces = [word[at : at + 4] for word in words for at in range(0, len(word), 4)]
        return [self.ids.setdefault(piece, len(self.ids)) for piece in pieces]

    def text(self, ids: tuple[int, ...]) -> str:
        return "".join({number: piece for piece, number in self.ids.items()}[i] for i in ids)


def test_a_phrase_is_spelled_with_and_without_space_and_capital() -> None:
    letters = Letters()
    found = {letters.text(ids) for ids in spellings(letters, " red  fox ", "m")}  # type: ignore[arg-type]
    assert found == {"red fox", " red fox", "Red fox", " Red fox"}
    for wrong in ("", "   ", "x" * 70):
        with pytest.raises(InvalidRequest) as error:
            spellings(letters, wrong, "m")  # type: ignore[arg-type]
        assert error.value.param == f"focus.{wrong}"


def test_a_favoured_phrase_has_each_of_its_tokens_and_an_avoided_one_its_last() -> None:
    letters = Letters()
    favoured = focus_entries(letters, {"red fox": 0.5}, "m")  # type: ignore[arg-type]
    avoided = focus_entries(letters, {"red fox": -0.5}, "m")  # type: ignore[arg-type]
    assert {letters.text((*e.prefix, e.token)) for e in favoured} == {
        spelled for form in ("red", " red", "Red", " Red") for spelled in (form, f"{form} fox")
    }
    assert {letters.text((*e.prefix, e.token)) for e in avoided} == {
        "red fox", " red fox", "Red fox", " Red fox",
    }  # fmt: skip
    assert all(e.prefix for e in avoided) and set(avoided.values()) == {-0.5}


def test_a_word_of_one_token_is_favoured_whole_and_its_names_add_up() -> None:
    letters = Letters()
    entries = focus_entries(letters, {"four": 0.6, "Four": 0.6}, "m")  # type: ignore[arg-type]
    assert {letters.text((e.token,)) for e in entries} == {"four", "Four"}
    assert set(entries.values()) == {0.99} and not any(e.prefix for e in entries)
