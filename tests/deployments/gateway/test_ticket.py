"""What an admitted request books of a call that did not come to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.contracts.spending import Spent
from deployments.gateway.context import RequestContext
from deployments.gateway.ticket import Ticket
from deployments.gateway.waiting import Waiting
from policies.errors import DeadlineExceeded, InvalidRequest
from policies.terms import Modulation, Share


class Remote:
    """A model whose calls end as a test says."""

    def __init__(self, *endings: Exception) -> None:
        self.endings, self.asked = endings, list[str]()
        self.answering = asyncio.Event()

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        for error in self.endings:
            raise error
        await self.answering.wait()

    async def stream(self, method: str, *args: Any, deadline: float) -> AsyncGenerator[Any]:
        yield 1
        yield await self.call(method, *args, deadline=deadline) or 2

    async def spent(self, call: str) -> Spent | None:
        self.asked.append(call)
        return Spent(7, 3, 1)


def ticket_of(remote: Remote, settled: dict[str, Any]) -> Ticket:
    lease: Any = SimpleNamespace(id="lease", settle=settled.update)
    entitlements: Any = SimpleNamespace(share=lambda: Share(flow="a"))
    model: Any = None
    return Ticket(entitlements, model, Modulation(), lease, remote, RequestContext(), 1e9, Waiting().enter("m"))


async def test_a_call_whose_client_leaves_is_booked_as_far_as_the_replica_went() -> None:
    settled: dict[str, Any] = {}
    ticket = ticket_of(remote := Remote(), settled)
    asking = asyncio.create_task(ticket.call("predict"))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await ticket.book()
    assert settled == {"tokens_in": 7, "tokens_out": 3, "images": 1} and remote.asked == ["lease"]


async def test_a_stream_that_is_closed_early_is_booked_alike() -> None:
    settled: dict[str, Any] = {}
    ticket = ticket_of(Remote(), settled)
    async with aclosing(ticket.stream("generate")) as items:
        assert await anext(items) == 1
    await ticket.book()
    assert settled["tokens_out"] == 3


async def test_so_is_a_call_that_its_deadline_ends() -> None:
    settled: dict[str, Any] = {}
    ticket = ticket_of(Remote(DeadlineExceeded("late", code="deadline_exceeded")), settled)
    with pytest.raises(DeadlineExceeded):
        await ticket.call("predict")
    await ticket.book()
    assert settled["tokens_out"] == 3


async def test_of_a_call_that_ends_by_itself_nobody_is_asked() -> None:
    remote = Remote(InvalidRequest("no picture"))
    ticket = ticket_of(remote, {})
    with pytest.raises(InvalidRequest):
        await ticket.call("predict")
    await ticket.book()
    other = ticket_of(Remote(), {})
    other.remote.answering.set()  # type: ignore[attr-defined]
    assert [item async for item in other.stream("generate")] == [1, 2]
    await other.book()
    assert not remote.asked and not other.cut
