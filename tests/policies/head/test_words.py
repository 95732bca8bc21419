"""Words and phrases as the tokens that spell them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import InvalidRequest
from policies.head.words import spellings, targets


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
    favoured = targets(letters, {"red fox": 0.5}, "m")  # type: ignore[arg-type]
    avoided = targets(letters, {"red fox": -0.5}, "m")  # type: ignore[arg-type]
    assert {letters.text((*e.prefix, e.index)) for e in favoured} == {
        spelled for form in ("red", " red", "Red", " Red") for spelled in (form, f"{form} fox")
    }
    assert {letters.text((*e.prefix, e.index)) for e in avoided} == {
        "red fox", " red fox", "Red fox", " Red fox",
    }  # fmt: skip
    assert all(e.prefix for e in avoided) and set(avoided.values()) == {-0.5}


def test_a_word_of_one_token_is_favoured_whole_and_its_names_do_not_add_up() -> None:
    letters = Letters()
    entries = targets(letters, {"four": 0.6, "Four": 0.5, "FOUR": 0.6}, "m")  # type: ignore[arg-type]
    assert {letters.text((e.index,)) for e in entries} == {"four", "Four", "FOUR"}
    assert set(entries.values()) == {0.6} and not any(e.prefix for e in entries)


@given(
    st.dictionaries(
        st.lists(st.sampled_from(["red", "Red", "sea", "redder", "seas"]), min_size=1, max_size=3).map(" ".join),
        st.floats(-0.99, 0.99),
        min_size=1,
        max_size=8,
    )
)
def test_no_token_is_moved_further_than_by_one_of_the_names_that_share_it(focus: dict[str, float]) -> None:
    letters = Letters()
    alone: dict[object, list[float]] = {}
    for phrase, strength in focus.items():
        for entry, own in targets(letters, {phrase: strength}, "m").items():  # type: ignore[arg-type]
            alone.setdefault(entry, [0.0]).append(own)
    together = targets(letters, focus, "m")  # type: ignore[arg-type]
    assert together == {entry: max(owns) + min(owns) for entry, owns in alone.items()}
