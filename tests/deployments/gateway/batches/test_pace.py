"""When a line may run."""

from __future__ import annotations

import asyncio
import time

import pytest

from deployments.gateway.batches import pace
from deployments.gateway.batches.pace import Foreground, Turns


async def test_while_nobody_calls_several_lines_run_and_beside_calls_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "QUIET_S", 0.0)
    monkeypatch.setattr(pace, "REST", 0.0)
    foreground, running, most = Foreground(), 0, 0
    turns = Turns(foreground, lambda: 4)

    async def line() -> None:
        nonlocal running, most
        async with turns.turn():
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1

    await asyncio.gather(*(line() for _ in range(12)))
    assert most == 4
    most = 0
    with foreground.under_way():
        await asyncio.gather(*(line() for _ in range(5)))
    assert most == 1


async def test_a_line_beside_calls_is_followed_by_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "REST", 2.0)
    foreground, began = Foreground(), []
    turns = Turns(foreground, lambda: 4)
    with foreground.under_way():
        for _ in range(3):
            async with turns.turn():
                began.append(time.monotonic())
                await asyncio.sleep(0.05)
    assert min(b - a for a, b in zip(began, began[1:], strict=False)) >= 0.15


async def test_after_a_call_the_next_one_is_expected_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "QUIET_S", 0.2)
    foreground = Foreground()
    with foreground.under_way():
        assert not foreground.quiet
    assert not foreground.quiet
    await asyncio.sleep(0.25)
    assert foreground.quiet
