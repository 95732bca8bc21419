"""One pattern of many texts finds what an alternation of them, the longest first, finds."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from deployments.prompts.alternatives import any_of

TEXTS = st.lists(st.text("ab<|>.*\\(\n\x00é😀", min_size=1, max_size=6), max_size=12)


@given(texts=TEXTS, within=st.text("ab<|>.*\\(\n\x00é😀", max_size=60))
def test_the_longest_at_each_place_is_found(texts: list[str], within: str) -> None:
    plain = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")
    assert any_of(texts).findall(within) == plain.findall(within)
    assert any_of([*texts, ""]).sub("X", "".join(texts)) == plain.sub("X", "".join(texts))


def test_texts_may_be_many_and_long() -> None:
    many = [f"<|reserved_{number}|>" for number in range(3000)] + ["x" * 5000]
    assert any_of(many).findall(" ".join(many)) == many
