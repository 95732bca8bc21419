"""Calls of a replica that does not answer in time: the deadline's own error, and the replica's work cancelled."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncGenerator, Generator
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.gateway.api.errors import error_response
from policies.errors import DeadlineExceeded, Unavailable

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from ray.exceptions import ActorDiedError

    from deployments.serving.calls import RemoteModel, call_replica, stream_replica


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
    return handle


class Scripted(Response):
    """Answers 7, or streams some items; then the replica dies where it is to."""

    def __init__(self, *items: int, dies: bool = False) -> None:
        super().__init__()
        self._died = ActorDiedError() if dies else None
        self._items = self._all(items)

    async def _all(self, items: tuple[int, ...]) -> AsyncGenerator[int]:
        for item in items:
            yield item
        if self._died:
            raise self._died

    def __await__(self) -> Generator[Any, None, int]:
        if self._died:
            raise self._died
        return 7
        yield


def handle_of_all(*responses: Response) -> Any:
    """As `handle_of`, of a replica after the other."""
    left = list(responses)
    handle = SimpleNamespace(answer=SimpleNamespace(remote=lambda *_: left.pop(0)), left=left)
    return handle


def soon() -> float:
    return asyncio.get_running_loop().time() + 0.05


async def test_an_answer_after_its_deadline_is_cancelled_and_says_what_to_ask_for_instead() -> None:
    response = Response()
    with pytest.raises(DeadlineExceeded, match="a lower max_tokens") as refused:
        await call_replica(handle_of(response).answer, deadline=soon())
    assert response.cancelled and error_response(refused.value).status_code == 408


async def test_a_stream_ends_at_its_deadline_after_what_came_before_it() -> None:
    response, seen = Response(), []
    with pytest.raises(DeadlineExceeded):
        async for item in stream_replica(handle_of(response).answer, deadline=soon()):
            seen.append(item)
    assert seen == [1, 2] and response.cancelled


async def test_a_client_that_leaves_cancels_the_replica_and_is_no_deadline() -> None:
    response = Response()
    task = asyncio.create_task(call_replica(handle_of(response).answer, deadline=soon() + 60.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert response.cancelled


async def test_what_a_dying_replica_owes_another_answers_once() -> None:
    assert await call_replica(handle_of_all(Scripted(dies=True), Scripted()).answer, deadline=soon() + 60.0) == 7
    handle = handle_of_all(*(Scripted(dies=True) for _ in range(3)))
    with pytest.raises(Unavailable, match="restarting"):
        await call_replica(handle.answer, deadline=soon() + 60.0)
    assert len(handle.left) == 1  # a request that kills replicas does not kill them all


@pytest.mark.parametrize(
    ("first", "second", "seen", "whole"),
    [((), (1, 2), [1, 2], True), ((1,), (1, 2), [1], False), ((), None, [], False)],
)
async def test_a_stream_begins_anew_on_another_replica_only_before_its_first_piece(
    first: tuple[int, ...], second: tuple[int, ...] | None, seen: list[int], whole: bool
) -> None:
    other = Scripted(dies=True) if second is None else Scripted(*second)
    got: list[int] = []

    async def read() -> bool:
        handle = handle_of_all(Scripted(*first, dies=True), other)
        try:
            async for item in stream_replica(handle.answer, deadline=soon() + 60.0):
                got.append(item)
        except Unavailable:
            return False
        return True

    assert await read() is whole and got == seen


async def test_a_methods_handle_is_made_once() -> None:
    made: list[dict[str, Any]] = []

    def options(**given: Any) -> Any:
        made.append(given)
        return SimpleNamespace(remote=lambda *_: Scripted())

    model = RemoteModel(SimpleNamespace(options=options))  # type: ignore[arg-type]
    assert [await model.call("answer", deadline=soon() + 60.0) for _ in range(3)] == [7, 7, 7]
    for _ in range(2):
        await model.stream("answer", deadline=soon()).aclose()
    assert [(given["method_name"], given["stream"]) for given in made] == [("answer", False), ("answer", True)]
