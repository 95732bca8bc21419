"""What is booked of an answer that was cut short: what the replica used, also what nobody read any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from deployments.contracts.spending import KEPT, Meter, Spending, Spent
from deployments.engines.text.choices import answer
from deployments.engines.text.generator import Generator
from policies.terms import Modulation, Share

SHARE = Share(flow="a")


async def running(spending: Spending, call: str, meters: list[Meter]) -> AsyncGenerator[int]:
    with spending.of(call) as meter:
        meters.append(meter)
        while True:
            meter.read([1, 2, 3], 3)
            yield 1


async def test_a_call_that_is_cut_short_is_told_once_and_with_all_its_parts_over() -> None:
    spending, meters = Spending(), list[Meter]()
    async with aclosing(running(spending, "call", meters)) as items:
        await anext(items)
        meters[0].open()
    asked = asyncio.create_task(spending.spent("call"))
    await asyncio.sleep(0)
    assert not asked.done()  # its sequence is in a step still
    meters[0].close(5)
    assert await asked == Spent(3, 5, 0)
    assert await spending.spent("call") is None


async def test_who_asks_before_the_call_is_cut_short_waits_for_it() -> None:
    spending, meters = Spending(), list[Meter]()
    items = running(spending, "call", meters)
    await anext(items)
    asked = asyncio.create_task(spending.spent("call"))
    await asyncio.sleep(0)
    await items.aclose()
    assert await asked == Spent(3, 0, 0)


async def test_a_call_that_ends_by_itself_is_not_told() -> None:
    spending = Spending()
    with spending.of("call"):
        asked = asyncio.create_task(spending.spent("call"))
        await asyncio.sleep(0)
    assert await asked is None and await spending.spent("call") is None and await spending.spent("other") is None


async def test_what_nobody_asks_for_is_forgotten() -> None:
    spending = Spending()
    for number in range(KEPT + 5):
        with pytest.raises(asyncio.CancelledError), spending.of(str(number)):
            raise asyncio.CancelledError
    assert await spending.spent("0") is None and await spending.spent(str(KEPT + 4)) == Spent()


@pytest.mark.parametrize("pieces", [0, 1, 3])
async def test_an_answer_that_is_cut_short_is_told_with_its_last_step(loaded: Generator, pieces: int) -> None:
    """Judged by the audit, which counts the steps of the head itself."""
    spending, modulation = Spending(), Modulation()
    prompt = loaded.encode_chat([{"role": "user", "content": "Tell me a long story."}])
    params = {"max_tokens": 200, "n": 2}
    before = loaded.audit().get(1.0, (0, 0))[0]

    async def call() -> AsyncGenerator[int]:
        with spending.of("call") as meter:
            answers = answer(loaded, [prompt], params, modulation, SHARE, param="messages", meter=meter)
            async with aclosing(answers) as deltas:
                async for delta in deltas:
                    yield delta.tokens

    seen = 0
    async with aclosing(call()) as tokens:
        async for count in tokens:
            seen += count
            if seen >= pieces:
                break
    spent = await spending.spent("call")
    assert spent is not None
    assert spent.tokens_out == loaded.audit().get(1.0, (0, 0))[0] - before >= seen
    assert spent.tokens_in == len(prompt) or not seen
