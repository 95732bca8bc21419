from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from deployments.engines.text.detokenizer import Detokenizer, StopMatcher
from tests.deployments.tokenizer_support import byte_fallback, byte_level, unigram

KINDS = [byte_fallback(), byte_level(), unigram()]
NAMES = ["byte fallback", "byte level", "unigram"]
PLAIN = KINDS[1]
written = st.text(st.sampled_from("ab é漢字😀👨‍👩‍👧\ufffd\n"), max_size=30) | st.text(max_size=30)


def told(tokenizer: Tokenizer, prompt: list[int], tokens: list[int]) -> str:
    detokenizer = Detokenizer(tokenizer, prompt)
    return "".join(detokenizer.push([token]) for token in tokens) + detokenizer.flush()


@pytest.mark.parametrize(
    "text", ["😀😀😀", "a 😀😀😀😀😀 b", "é漢字é漢字漢", "漢" * 40, "👨‍👩‍👧‍👦👨‍👩‍👧‍👦", "naïve 日本語"]
)
@pytest.mark.parametrize("tokenizer", KINDS, ids=NAMES)
def test_emoji_and_cjk_come_whole_however_many(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text).ids
    detokenizer = Detokenizer(tokenizer, [])
    pieces = [detokenizer.push([token]) for token in tokens]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(tokens) == text
    assert sum(map(bool, pieces)) > 1, "they come while the answer grows"
    at_once = Detokenizer(tokenizer, [])
    assert at_once.push(tokens) + at_once.flush() == text


@given(st.sampled_from(KINDS), written, written)
def test_joined_pieces_are_what_the_tokenizer_makes_of_all_tokens(kind: Tokenizer, text: str, before: str) -> None:
    prompt, tokens = kind.encode(before).ids, kind.encode(text).ids
    # As far as the prompt's last tokens tell: its own text may have been cut there.
    context = prompt[-6:]
    whole = kind.decode(context)
    expected = kind.decode(context + tokens)[len(whole) :] if not whole.endswith("\ufffd") else kind.decode(tokens)
    assert told(kind, prompt, tokens) == expected


@given(st.sampled_from(KINDS), st.data())
def test_any_tokens_at_all_are_told(kind: Tokenizer, data: st.DataObject) -> None:
    ids = st.integers(0, kind.get_vocab_size() - 1) | st.integers(3 + 0x80, 3 + 0xFF)
    prompt, tokens = data.draw(st.lists(ids, max_size=8)), data.draw(st.lists(ids, max_size=24))
    text = told(kind, prompt, tokens)
    plain = kind.decode(tokens)
    assert text.count("\ufffd") <= plain.count("\ufffd") + 3 * len(tokens)
    for word in ("hello", "x", "c"):
        assert text.count(word) >= plain.count(word)


def test_an_incomplete_character_waits() -> None:
    detokenizer = Detokenizer(PLAIN, [])
    tokens = PLAIN.encode("é!").ids
    assert [detokenizer.push([token]) for token in tokens] == ["", "é", "!"]


@pytest.mark.parametrize("tokenizer", KINDS, ids=NAMES)
def test_a_broken_character_is_told_with_what_follows_it_or_at_the_end(tokenizer: Tokenizer) -> None:
    broken = tokenizer.encode("😀").ids[:-1]
    word = tokenizer.encode("x").ids
    detokenizer = Detokenizer(tokenizer, [])
    assert detokenizer.push(broken) == ""
    assert detokenizer.push(word).endswith("x")
    detokenizer.push(broken)
    assert set(detokenizer.flush()) == {"\ufffd"}


def test_bytes_that_are_no_text_do_not_end_the_stream() -> None:
    tokenizer = byte_fallback()
    k, broken = 3 + ord("K"), 3 + 0xFF
    # The tokenizer alone takes K back for a replacement; a stream has told it.
    assert told(tokenizer, [], [k, broken, tokenizer.token_to_id("▁a"), k]) == "K\ufffd aK"


def test_a_tokens_own_text_has_its_space() -> None:
    tokenizer = byte_fallback()
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("b").ids)
    assert [detokenizer.token(tokenizer.token_to_id(t)) for t in ("▁a", "c", "<0xF0>", "</s>")] == [
        " a", "c", "\ufffd", "",
    ]  # fmt: skip


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
