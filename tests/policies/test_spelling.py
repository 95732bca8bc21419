"""Spellings of one term."""

import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.spelling import class_aliases, term_of

FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
FORMS = (
    str.lower,
    str.upper,
    str.title,
    str.swapcase,
    lambda text: text.translate(FULL_WIDTH),
    *(lambda text, form=form: unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")),
)
INVISIBLE = "\u00ad\u034f\u061c\u115f\u180b\u200b\u200c\u200d\u2060\u2066\u3164\ufe0f\ufeff\U000e0001\U000e0100"


def spellings_of(term: str) -> st.SearchStrategy[str]:
    """Ways to write a term that a reader takes for it, or that Unicode does."""

    def spelled(form: int, breaks: list[tuple[int, str]], ends: tuple[str, str], spaces: str) -> str:
        text = FORMS[form](term).replace(" ", spaces)
        for at, what in breaks:
            text = text[: at % (len(text) + 1)] + what + text[at % (len(text) + 1) :]
        return ends[0] + text + ends[1]

    blank = st.text(" \t\u00a0\u3000", max_size=2)
    breaks = st.lists(st.tuples(st.integers(0, 50), st.sampled_from(INVISIBLE)), max_size=3)
    return st.builds(
        spelled, st.integers(0, len(FORMS) - 1), breaks, st.tuples(blank, blank), blank.filter(lambda text: text != "")
    )


@pytest.mark.parametrize(
    "term", ["ocean", "New York", "straße", "Ångström", "ﬁre", "Ὀδυσσεύς", "서울", "海", "naïve café"]
)
@given(data=st.data())
def test_spellings_of_a_term_are_one(term: str, data: st.DataObject) -> None:
    assert term_of(data.draw(spellings_of(term))) == term_of(term)


def test_words_that_differ_stay_apart() -> None:
    words = ["ocean", "oceans", "océan", "ocean.", "new york", "newyork", "оcean", "κόσμος", "космос"]
    assert len({term_of(word) for word in words}) == len(words)


@given(st.text())
def test_a_term_is_its_own(text: str) -> None:
    term = term_of(text)
    assert term_of(term) == term and term == term.strip()


def test_what_is_invisible_is_what_unicode_says() -> None:
    regex = pytest.importorskip("regex")
    ignorable = regex.compile(r"\p{Default_Ignorable_Code_Point}")
    for code in range(sys.maxunicode + 1):
        letter = chr(code)
        assert (term_of(f"a{letter}b") == "ab") == bool(ignorable.fullmatch(letter)), hex(code)
    assert not re.search(r"\s{2}", term_of(" a \u3000 b\n"))


def test_a_class_of_several_synonyms_goes_by_its_first_one_where_no_other_class_does() -> None:
    classes = (
        "tench, Tinca tinca",
        "goldfish",
        "crane",
        "crane, wading bird",
        "drake",
        "drake, duck",
        "maillot, a",
        "maillot, b",
    )
    assert dict(class_aliases(classes)) == {"tench": "tench, Tinca tinca"}
