"""How the store is reached: a URL to clients that time out soon and never repeat a command by themselves."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

SOCKET_TIMEOUT_S = 1.0
"""Of an answer. A server that waits for disk or core is silent for tenths of a second, and not away: two gateways
that count by themselves meanwhile admit more than a limit."""
SENTINEL_TIMEOUT_S = 0.2
_Sentinel: Any = Sentinel
_Cluster: Any = RedisCluster
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


def make_client(
    url: str, *, protocol: int, timeout_s: float = SOCKET_TIMEOUT_S, guarded: bool = False
) -> tuple[Any, Any]:
    """A client (`redis.asyncio.Redis`) of `url`, speaking RESP `protocol`, and the Sentinel group to close with it.

    It connects at first use. Both are Any, since redis-py's annotations describe the blocking client as well.

    Sentinel's form is `redis+sentinel://[user:pass@]host1:port,host2:port/<service>[/db]`; the credentials are the
    data server's, and `?sentinel_username=&sentinel_password=` are the Sentinels' own where they have any. A
    Cluster's is `redis+cluster://[user:pass@]host1:port,host2:port`; a few of its nodes are enough. With `rediss`,
    `?ssl_ca_certs=`, `ssl_certfile=` and `ssl_keyfile=` name files.

    Args:
        timeout_s: bound of each answer, and of each new connection.
        guarded: the caller bounds each answer itself; the client's own bound would cost a task for each command.

    Raises:
        ValueError: the URL is malformed; the message never repeats it, since it may hold a password.
    """
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise ValueError(f"The store's URL must begin with one of {', '.join(f'{s}://' for s in SCHEMES)}.")
    # A repeated admission would be booked twice, so a failed command is for the caller to judge.
    options: dict[str, Any] = {
        "socket_timeout": None if guarded else timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
    }
    if scheme.endswith("+sentinel"):
        return _sentinel_client(url, scheme.startswith("rediss"), protocol, options)
    if scheme.endswith("+cluster"):
        return _cluster_client(url, scheme.startswith("rediss"), protocol, options), None
    try:
        return Redis.from_url(url, protocol=protocol, decode_responses=False, **options), None
    except ValueError:
        raise ValueError("The store's URL is malformed; expected redis://user:password@host:port/0.") from None


def _sentinel_client(url: str, tls: bool, protocol: int, options: dict[str, Any]) -> tuple[Any, Any]:
    hosts, path, query, access = _split(url)
    service, _, db = path.partition("/")
    if not service or (db and not db.isdigit()):
        raise ValueError("A Sentinel URL must end with its service: redis+sentinel://host:26379/<service>[/db].")
    own = {name: query[f"sentinel_{name}"] for name in ("username", "password") if f"sentinel_{name}" in query}
    tls_options = _tls(tls, query)
    # A silent Sentinel must be given up before whoever waits for the answer gives up: the next one is asked then.
    soon = {"socket_timeout": SENTINEL_TIMEOUT_S, "socket_connect_timeout": SENTINEL_TIMEOUT_S}
    sentinel: Any = _Sentinel(hosts, sentinel_kwargs={**options, **soon, **own, **tls_options})
    client = sentinel.master_for(
        service,
        db=int(db or 0),
        protocol=protocol,
        decode_responses=False,
        **access,
        **tls_options,
        **options,
    )
    return client, sentinel


def _cluster_client(url: str, tls: bool, protocol: int, options: dict[str, Any]) -> Any:
    hosts, path, query, access = _split(url)
    if path:
        raise ValueError("A Cluster URL names nodes only: redis+cluster://host1:6379,host2:6379.")
    return _Cluster(
        startup_nodes=[ClusterNode(host, port) for host, port in hosts],
        # A slot without a server fails its own tenants' requests, not everyone's.
        require_full_coverage=False,
        # A slot that has moved is followed; to drop all connections for it every so often would hold up everybody.
        reinitialize_steps=0,
        protocol=protocol,
        decode_responses=False,
        **access,
        **_tls(tls, query),
        **options,
    )


def _split(url: str) -> tuple[list[tuple[str, int]], str, dict[str, str], dict[str, str | None]]:
    """Addresses, path, query and credentials of a URL with several addresses."""
    parts = urlsplit(url)
    credentials, _, addresses = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    port = 26379 if parts.scheme.endswith("+sentinel") else 6379
    hosts = [_address(address, port) for address in addresses.split(",")]
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return (
        hosts,
        parts.path.strip("/"),
        query,
        {"username": unquote(username) or None, "password": unquote(password) or None},
    )


def _tls(tls: bool, query: dict[str, str]) -> dict[str, Any]:
    files: dict[str, Any] = {
        name: query[name] for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile") if name in query
    }
    return {"ssl": True, **files} if tls else {}


def _address(text: str, port: int) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::(\d{1,5}))?", text)
    if match is None:
        raise ValueError(f"The store's URL needs addresses such as host1:{port},host2:{port}.")
    return match[1].strip("[]"), int(match[2] or port)


def describe(url: str) -> str:
    """The URL without its credentials and query, for people and logs."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
