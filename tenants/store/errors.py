"""What a server says no with: which refusals pass by themselves, and words for each that hold no data and no secret."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import AuthenticationError, RedisClusterException, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from policies.errors import Unavailable

BROKEN = "broken_record"
"""Code of a refusal that does not pass: what the command works on is not what it should be."""
_PASSING = frozenset(
    ["OOM", "READONLY", "NOPERM", "MISCONF", "NOREPLICAS", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "BUSY", "NOAUTH"]
)


def code(error: ResponseError) -> str:
    """The server's own word for a refusal, such as OOM or READONLY; it holds no data and no secret."""
    # redis-py takes the word off the message of those that it knows.
    if word := getattr(error, "status_code", None):
        return str(word)
    return str(error).split(" ", 1)[0][:40]


def passes(error: ResponseError) -> bool:
    """Whether it was the server's state that refused, not the command: the same command may succeed later."""
    return code(error) in _PASSING


def unavailable(error: ResponseError) -> Unavailable:
    """What a refusal is to a request; the server's word is a note for the operator, which a client is not told."""
    refused = Unavailable(
        "The tenant store refused a command; an operator must look at it.",
        retry_after=5,
        code=None if passes(error) else BROKEN,
    )
    refused.add_note(code(error))
    return refused


_REASONS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (AuthenticationError, "it refuses the user or the password of its URL"),
    (ssl.SSLCertVerificationError, "its certificate is not trusted: name its authority by ?ssl_ca_certs=FILE"),
    (ssl.SSLError, "it does not speak TLS as the URL says: rediss:// is with TLS, redis:// without"),
    (socket.gaierror, "its host name is not known"),
    (MasterNotFoundError, "no Sentinel answers, or none knows that service"),
    (ConnectionRefusedError, "nothing listens there"),
    ((TimeoutError, RedisTimeoutError), "it does not answer in time"),
    (RedisClusterException, "no node answers, or it is no Cluster"),
)
_ADVICE = {
    "NOPERM": "its user may not do that; docs/operations.md lists what an admin's user needs",
    "NOAUTH": "it wants a password: redis://user:password@host:port",
    "READONLY": "it is a read-only replica; name the primary",
    "OOM": "it is out of memory",
}


def explain(error: Unavailable, address: str) -> str:
    """Why the store is unavailable, for an operator: `address` and the reason, in one line."""
    if words := getattr(error, "__notes__", ()):
        return f"the store at {address} refused ({words[0]}): {_ADVICE.get(words[0], 'see its own log')}."
    for cause in _chain(error):
        for kind, reason in _REASONS:
            if isinstance(cause, kind):
                return f"the store at {address} is not reached: {reason}."
    return error.message if error.__cause__ is None else f"the store at {address} is not reached."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error's causes, the first one first: what redis-py says of it is often vague."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return reversed(causes)
