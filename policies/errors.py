"""Every error that a request can meet below HTTP; `deployments/gateway/api/errors.py` alone maps them to a status.

ServiceError
├── InvalidRequest        a field is malformed, unsupported or out of range        400
├── Unauthenticated       the key is missing, unknown, revoked or expired          401
├── NotEntitled           a valid key that may not do this                         403
├── NotFound              no such model for this tenant                            404
├── DeadlineExceeded      the answer took longer than the deployment allows        408
├── PayloadTooLarge       body or image beyond the limit                           413
├── LimitExceeded         rate, concurrency or quota                               429
└── Unavailable           store away, queue full, replica starting                 503
"""

from __future__ import annotations

from typing import Any


class ServiceError(Exception):
    """Base of all errors that a client is told about.

    Args:
        message: what is wrong and what to change, for the client.
        param: the request field at fault, if there is one.
        code: a stable machine-readable code, if there is one.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call cls(*args) and lose every keyword field between actors.
        return _rebuild, (type(self), self.__dict__.copy())


def _rebuild(cls: type[ServiceError], state: dict[str, Any]) -> ServiceError:
    error = cls.__new__(cls)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    return error


class InvalidRequest(ServiceError):
    """A field is malformed, unsupported or out of range; `param` names it."""


class Unauthenticated(ServiceError):
    """The API key is missing, unknown, revoked or expired, and nothing else."""


class NotEntitled(ServiceError):
    """A valid key that is not entitled: suspended tenant, model, level or focus outside its terms."""


class NotFound(ServiceError):
    """No such model for this tenant."""


class DeadlineExceeded(ServiceError):
    """The deployment's own deadline passed before the answer was ready."""


class PayloadTooLarge(ServiceError):
    """A request body or an image beyond the deployment's limit."""


class LimitExceeded(ServiceError):
    """A rate, concurrency or quota limit is reached.

    Args:
        retry_after: whole seconds until a retry can succeed; None where none can.
        retry_soon: False where waiting that long is not worth a client's automatic retry.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: int | None,
        retry_soon: bool = True,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after = retry_after
        self.retry_soon = retry_soon


class Unavailable(ServiceError):
    """A part of the service cannot answer now: the store, a full queue, a replica that starts.

    Args:
        retry_after: whole seconds after which a retry is worth it.
    """

    def __init__(
        self, message: str, *, retry_after: int = 1, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after = retry_after


def first_line(error: BaseException) -> str:
    """What an error of a library says, short enough for one line of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
