"""Calls from the gateway to a model's replica: deadlines, cancellation, and Ray's errors as ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, NoReturn

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from policies.errors import DeadlineExceeded, ServiceError, Unavailable


async def call_replica(handle: DeploymentHandle, method: str, *args: Any, deadline: float) -> Any:
    """Call `method` on a replica.

    Args:
        deadline: loop time in seconds after which the call is cancelled.

    Raises:
        ServiceError: the replica's own, unchanged; DeadlineExceeded; Unavailable where the replica died.
    """
    response = getattr(handle, method).remote(*args)
    try:
        async with asyncio.timeout_at(deadline):
            return await response
    except TimeoutError:
        raise _deadline() from None
    except (RayError, RayServeException) as error:
        _raise_domain_error(error)
    finally:
        response.cancel()


async def stream_replica(handle: DeploymentHandle, method: str, *args: Any, deadline: float) -> AsyncGenerator[Any]:
    """Stream from `method` on a replica; as `call_replica`, and closing the iterator cancels the replica's work."""
    response = getattr(handle.options(stream=True), method).remote(*args)
    try:
        async with asyncio.timeout_at(deadline):
            async for item in response:
                yield item
    except TimeoutError:
        raise _deadline() from None
    except (RayError, RayServeException) as error:
        _raise_domain_error(error)
    finally:
        response.cancel()


def _deadline() -> DeadlineExceeded:
    return DeadlineExceeded("The answer took longer than this deployment allows.", code="deadline_exceeded")


def _raise_domain_error(error: Exception) -> NoReturn:
    """A replica's ServiceError comes back wrapped by Ray; anything else of Ray's means that a replica is away."""
    if isinstance(error, ServiceError):  # Ray's wrapper also inherits from the cause, without its fields
        error = getattr(error, "cause", error)
    cause = getattr(error, "cause", None)
    if isinstance(cause, ServiceError):
        raise cause from None
    if isinstance(error, ServiceError):
        raise error
    if isinstance(error, RayTaskError):  # a bug in our own code: the generic handler logs it and answers 500
        raise error
    raise Unavailable("The model's replica is restarting; try again.", retry_after=2, code="replica_away") from error
