"""Calls of a replica that does not answer in time: the deadline's own error, and the replica's work cancelled."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncGenerator, Generator
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.gateway.api.errors import error_response
from policies.errors import DeadlineExceeded

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from deployments.serving.calls import call_replica, stream_replica


class Response:
    """A replica's answer: two items, if it is streamed, and then nothing any more."""

    def __init__(self) -> None:
        self.cancelled = False
        self._items = self._two()

    async def _two(self) -> AsyncGenerator[int]:
        yield 1
        yield 2
        await asyncio.Event().wait()

    def __await__(self) -> Generator[Any, None, None]:
        return asyncio.Event().wait().__await__()

    def __anext__(self) -> Any:
        return self._items.__anext__()

    def cancel(self) -> None:
        self.cancelled = True


def handle_of(response: Response) -> Any:
    """As Ray's handle of a deployment whose one method is `answer`."""
    handle = SimpleNamespace(answer=SimpleNamespace(remote=lambda *_: response))
    handle.options = lambda **_: handle
    return handle


def soon() -> float:
    return asyncio.get_running_loop().time() + 0.05


async def test_an_answer_after_its_deadline_is_cancelled_and_says_what_to_ask_for_instead() -> None:
    response = Response()
    with pytest.raises(DeadlineExceeded, match="a lower max_tokens") as refused:
        await call_replica(handle_of(response), "answer", deadline=soon())
    assert response.cancelled and error_response(refused.value).status_code == 408


async def test_a_stream_ends_at_its_deadline_after_what_came_before_it() -> None:
    response, seen = Response(), []
    with pytest.raises(DeadlineExceeded):
        async for item in stream_replica(handle_of(response), "answer", deadline=soon()):
            seen.append(item)
    assert seen == [1, 2] and response.cancelled


async def test_a_client_that_leaves_cancels_the_replica_and_is_no_deadline() -> None:
    response = Response()
    task = asyncio.create_task(call_replica(handle_of(response), "answer", deadline=soon() + 60.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert response.cancelled
