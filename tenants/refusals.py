"""What a server says no with: which refusals pass by themselves, and a word for each that a log may show."""

from __future__ import annotations

from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, ResponseError

_CODES: dict[type[ResponseError], str] = {
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    NoPermissionError: "NOPERM",
}
"""redis-py takes the server's word off the message of these."""
_PASSING = frozenset(
    ["OOM", "READONLY", "NOPERM", "MISCONF", "NOREPLICAS", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "BUSY", "NOAUTH"]
)


def code(error: ResponseError) -> str:
    """The server's own word for a refusal, such as OOM or READONLY; it holds no data and no secret."""
    for kind, word in _CODES.items():
        if isinstance(error, kind):
            return word
    return str(error).split(" ", 1)[0][:40]


def passes(error: ResponseError) -> bool:
    """Whether it was the server's state that refused, not the command: the same command may succeed later."""
    return code(error) in _PASSING
