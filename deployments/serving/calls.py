"""Calls from the gateway to a model's replica: deadlines, cancellation, and Ray's errors as ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, NoReturn

from grpc.aio import AioRpcError
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.contracts.spending import Spent
from policies.errors import DeadlineExceeded, ServiceError, Unavailable

SPENT_BY_S = 10.0
"""A step of a large batch, and more."""


class RemoteModel:
    """A model behind its replicas, as the gateway's `Model`.

    Attributes:
        handle: Ray's, of its deployment.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self.handle = handle
        self._methods: dict[tuple[str, bool], DeploymentHandle[Any]] = {}

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        """As `call_replica`."""
        return await call_replica(self._method(method, stream=False), *args, deadline=deadline)

    def stream(self, method: str, *args: Any, deadline: float) -> AsyncGenerator[Any]:
        """As `stream_replica`."""
        return stream_replica(self._method(method, stream=True), *args, deadline=deadline)

    async def spent(self, call: str) -> Spent | None:
        """Asks every replica, since Serve does not say which of them a call went to."""
        asked = self.handle.broadcast("spent", call)
        try:
            answers = await asked.results_async(timeout_s=SPENT_BY_S, return_exceptions=True)
        except (TimeoutError, RayError, RayServeException, AioRpcError):
            return None
        spent = [answer for answer in answers if isinstance(answer, Spent)]
        return sum(spent, Spent()) if spent else None

    def _method(self, name: str, *, stream: bool) -> DeploymentHandle[Any]:
        """A method's handle, made once: Ray makes another at each `handle.name`, which takes as long as the call."""
        made = self._methods.get((name, stream))
        if made is None:
            # What is sent are values of importable types, which need no pickler written in Python.
            options: Any = {"method_name": name, "stream": stream, "request_serialization": "pickle"}
            made = self._methods[name, stream] = self.handle.options(**options)
        return made


async def call_replica(method: DeploymentHandle[Any], *args: Any, deadline: float) -> Any:
    """Call a method of a replica, and where that dies meanwhile once more on another: an answer changes nothing.

    Args:
        method: a handle of it.
        deadline: loop time in seconds after which the call is cancelled.

    Raises:
        ServiceError: the replica's own, unchanged; DeadlineExceeded; Unavailable where replicas died.
    """
    try:
        return await _call(method, *args, deadline=deadline)
    except ReplicaAway:
        return await _call(method, *args, deadline=deadline)


async def _call(method: DeploymentHandle[Any], *args: Any, deadline: float) -> Any:
    response: Any = method.remote(*args)
    try:
        return await _until(deadline, response)
    except BaseException:
        response.cancel()
        raise


async def stream_replica(method: DeploymentHandle[Any], *args: Any, deadline: float) -> AsyncGenerator[Any]:
    """Stream from a method of a replica; as `call_replica`, and closing the iterator cancels the replica's work.

    It is begun anew on another replica only where nothing has come yet.
    """
    begun = False
    try:
        async with aclosing(_stream(method, *args, deadline=deadline)) as items:
            async for item in items:
                begun = True
                yield item
            return
    except ReplicaAway:
        if begun:
            raise
    async with aclosing(_stream(method, *args, deadline=deadline)) as items:
        async for item in items:
            yield item


async def _stream(method: DeploymentHandle[Any], *args: Any, deadline: float) -> AsyncGenerator[Any]:
    response: Any = method.remote(*args)
    try:
        while True:
            try:
                # Each item on its own: a timeout that spans a yield would strike whichever task runs at the time.
                item = await _until(deadline, anext(response))
            except StopAsyncIteration:
                return
            yield item
    finally:
        response.cancel()


async def _until(deadline: float, answer: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout_at(deadline):
            return await answer
    except TimeoutError:
        raise DeadlineExceeded(
            "The answer took longer than this deployment allows. Ask for less at a time (of text: a lower max_tokens,"
            " or n), or try again when it is less busy.",
            code="deadline_exceeded",
        ) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Nobody cancelled us: the replica was shut down in the middle, and its own cancellation came back.
        raise _away() from None
    except (RayError, RayServeException, AioRpcError) as error:
        _raise_domain_error(error)


class ReplicaAway(Unavailable):
    """A replica has died, or was ended before it had answered."""


def _away() -> ReplicaAway:
    return ReplicaAway("The model's replica is restarting; try again.", retry_after=2, code="replica_away")


def _raise_domain_error(error: Exception) -> NoReturn:
    """A replica's ServiceError comes back wrapped by Ray; anything else of Ray's means that a replica is away."""
    if isinstance(cause := getattr(error, "cause", None), ServiceError):
        raise cause from None
    if isinstance(error, ServiceError):
        raise error
    if isinstance(error, RayTaskError):  # a bug in our own code: the generic handler logs it and answers 500
        raise error
    raise _away() from error
