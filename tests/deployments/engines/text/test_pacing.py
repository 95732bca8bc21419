"""Pieces on their way: few messages, the first token at once, and nothing lost or counted twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.contracts.catalog import TextDelta, TokenLogprob
from deployments.engines.text.pacing import WHOLE, paced

HOUR = 3600.0


def piece(text: str, index: int = 0, finish: str | None = None, read: int = 3, tokens: int = 1) -> TextDelta:
    said = (TokenLogprob(text, -1.0),) if tokens else ()
    return TextDelta(text, tokens, finish, read, 0, index, said, cached_tokens=1)


async def stream(
    pieces: Iterable[TextDelta | Exception], closed: list[bool] | None = None
) -> AsyncGenerator[TextDelta]:
    try:
        for one in pieces:
            await asyncio.sleep(0)
            if isinstance(one, Exception):
                raise one
            yield one
    finally:
        if closed is not None:
            closed.append(True)


async def test_the_first_token_and_the_end_go_at_once_and_what_lies_between_together() -> None:
    pieces = [piece("", tokens=0), *map(piece, "abcd"), piece("e", finish="stop")]
    sent = [(delta.text, delta.tokens, delta.finish_reason) async for delta in paced(stream(pieces), HOUR)]
    assert sent == [("", 0, None), ("a", 1, None), ("bcde", 4, "stop")]


async def test_without_a_pause_every_piece_is_its_own() -> None:
    pieces = [piece(text) for text in "abc"]
    assert [delta async for delta in paced(stream(pieces), 0.0)] == pieces


async def test_what_is_not_streamed_is_a_piece_an_answer() -> None:
    pieces = [piece("a"), piece("x", 1), piece("b", finish="stop"), piece("y", 1, "length", read=7)]
    sent = [delta async for delta in paced(stream(pieces), WHOLE)]
    assert [(delta.index, delta.text, delta.finish_reason) for delta in sent] == [
        (0, "ab", "stop"),
        (1, "xy", "length"),
    ]
    assert sent[-1].prompt_tokens == 7  # totals are of all, so the latest comes last


async def test_a_piece_that_waits_goes_when_its_time_has_come() -> None:
    never = asyncio.Event()

    async def stalls() -> AsyncGenerator[TextDelta]:
        yield piece("a")
        yield piece("b")
        await never.wait()
        yield piece("c")

    async with aclosing(paced(stalls(), 0.01)) as pieces:
        assert [(await anext(pieces)).text for _ in range(2)] == ["a", "b"]


async def test_what_came_before_an_error_goes_before_it() -> None:
    seen = []
    with pytest.raises(ValueError, match="broken"):
        async for delta in paced(stream([piece("a"), piece("b"), piece("c"), ValueError("broken")]), HOUR):
            seen.append(delta.text)
    assert seen == ["a", "bc"]


async def test_leaving_ends_what_is_waited_for() -> None:
    closed: list[bool] = []
    source = stream(map(piece, "abcdef"), closed)
    async with aclosing(source), aclosing(paced(source, HOUR)) as pieces:
        assert (await anext(pieces)).text == "a"
        waiting = asyncio.ensure_future(anext(pieces))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert closed == [True]


@given(
    st.lists(st.tuples(st.sampled_from("abc "), st.integers(0, 2), st.integers(0, 2)), max_size=30),
    st.sampled_from([0.0, 0.0005, HOUR, WHOLE]),
)
def test_no_token_is_lost_or_counted_twice(given_pieces: list[tuple[str, int, int]], pace_s: float) -> None:
    pieces = [piece(text, index, read=at, tokens=tokens) for at, (text, index, tokens) in enumerate(given_pieces)]

    async def sent() -> list[TextDelta]:
        return [delta async for delta in paced(stream(pieces), pace_s)]

    got = asyncio.run(sent())
    for index in range(3):
        own, all_of = [d for d in got if d.index == index], [d for d in pieces if d.index == index]
        assert "".join(d.text for d in own) == "".join(d.text for d in all_of)
        assert sum(d.tokens for d in own) == sum(d.tokens for d in all_of)
        assert [lp for d in own for lp in d.logprobs] == [lp for d in all_of for lp in d.logprobs]
    assert [d.prompt_tokens for d in got[-1:]] == [d.prompt_tokens for d in pieces[-1:]]
