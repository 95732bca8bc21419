from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engines.text.detokenizer import Detokenizer, StopMatcher


def decode_bytes(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


@given(st.text(max_size=30), st.text(max_size=10))
def test_bytes_become_the_whole_text_whatever_their_number(text: str, before: str) -> None:
    detokenizer = Detokenizer(decode_bytes, list(before.encode()))
    pieces = [detokenizer.push([byte]) for byte in text.encode()]
    assert "".join(pieces) + detokenizer.flush() == text


def test_an_incomplete_character_waits() -> None:
    detokenizer = Detokenizer(decode_bytes, [])
    assert [detokenizer.push([byte]) for byte in "é!".encode()] == ["", "é", "!"]


def test_a_broken_character_is_not_held_forever() -> None:
    detokenizer = Detokenizer(decode_bytes, [])
    assert "".join(detokenizer.push([0xFF]) for _ in range(8))


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.integers(1, 5))
def test_text_is_cut_at_the_first_stop_wherever_the_pieces_fall(text: str, stops: list[str], size: int) -> None:
    matcher = StopMatcher(stops)
    out = "".join(matcher.push(text[i : i + size]) for i in range(0, len(text), size)) + matcher.flush()
    ends = [text.find(stop) for stop in stops if stop in text]
    assert matcher.stopped == bool(ends)
    # Pieces are judged as they come, so a longer stop that began earlier may complete after a shorter one.
    assert text.startswith(out) and not any(stop in out for stop in stops)
    assert ends or out == text


@pytest.mark.parametrize("pieces", [["one ST", "OP two"], ["one STOP two"], ["one ", "S", "T", "O", "P two"]])
def test_a_stop_text_across_pieces_is_cut(pieces: list[str]) -> None:
    matcher = StopMatcher(("STOP",))
    assert "".join(matcher.push(piece) for piece in pieces) + matcher.flush() == "one "
    assert matcher.stopped


def test_the_start_of_a_stop_text_is_released_when_it_was_none() -> None:
    matcher = StopMatcher(("STOP",))
    assert (matcher.push("ST"), matcher.push("ART")) == ("", "START")
