"""How the store is reached: a URL to a client that times out soon and never repeats a command by itself."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

SOCKET_TIMEOUT_S = 0.2
_Sentinel: Any = Sentinel
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")


def make_client(url: str, *, protocol: int, timeout_s: float = SOCKET_TIMEOUT_S) -> tuple[Any, Any]:
    """A client (`redis.asyncio.Redis`) of `url`, speaking RESP `protocol`, and the Sentinel group to close with it.

    It connects at first use. Both are Any, since redis-py's annotations describe the blocking client as well.

    Sentinel's form is `redis+sentinel://[user:pass@]host1:port,host2:port/<service>[/db]`; the credentials are the
    data server's, and `?sentinel_username=&sentinel_password=` are the Sentinels' own where they have any.

    Raises:
        ValueError: the URL is malformed; the message never repeats it, since it may hold a password.
    """
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise ValueError(f"The store's URL must begin with one of {', '.join(f'{s}://' for s in SCHEMES)}.")
    # A repeated admission would be booked twice, so a failed command is for the caller to judge.
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
    }
    if scheme.endswith("+sentinel"):
        return _sentinel_client(url, scheme.startswith("rediss"), protocol, options)
    try:
        return Redis.from_url(url, protocol=protocol, decode_responses=False, **options), None
    except ValueError:
        raise ValueError("The store's URL is malformed; expected redis://user:password@host:port/0.") from None


def _sentinel_client(url: str, tls: bool, protocol: int, options: dict[str, Any]) -> tuple[Any, Any]:
    parts = urlsplit(url)
    credentials, _, addresses = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    service, _, db = parts.path.strip("/").partition("/")
    hosts = [_address(address) for address in addresses.split(",")]
    if not service or (db and not db.isdigit()):
        raise ValueError("A Sentinel URL must end with its service: redis+sentinel://host:26379/<service>[/db].")
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    own = {name: query[f"sentinel_{name}"] for name in ("username", "password") if f"sentinel_{name}" in query}
    tls_options: dict[str, Any] = {"ssl": True} if tls else {}
    sentinel: Any = _Sentinel(hosts, sentinel_kwargs={**options, **own, **tls_options})
    client = sentinel.master_for(
        service,
        db=int(db or 0),
        username=unquote(username) or None,
        password=unquote(password) or None,
        protocol=protocol,
        decode_responses=False,
        **tls_options,
        **options,
    )
    return client, sentinel


def _address(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::(\d{1,5}))?", text)
    if match is None:
        raise ValueError("A Sentinel URL needs addresses such as host1:26379,host2:26379.")
    return match[1].strip("[]"), int(match[2] or 26379)


def describe(url: str) -> str:
    """The URL without its credentials and query, for people and logs."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
