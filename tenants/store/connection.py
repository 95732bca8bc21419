"""How the store is reached: a URL to clients that time out soon and never repeat a command by themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from tenants.store import scripts

SOCKET_TIMEOUT_S = 1.0
"""Of an answer. A server that waits for disk or core is silent for tenths of a second, and not away: two gateways
that count by themselves meanwhile admit more than a limit."""
SENTINEL_TIMEOUT_S = 0.2
PAGE = 1000
_FIND = scripts.load("store/find").text
_Sentinel: Any = Sentinel
_Cluster: Any = RedisCluster
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


class Link:
    """The connections of one URL: a pool for commands, and another for pushes, which RESP2 cannot have.

    Methods raise redis-py's errors; nothing is connected before it is used.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        """Raises ValueError for a malformed URL."""
        self._client, self._sentinel = make_client(url, protocol=2, timeout_s=timeout_s)
        self._push_client, self._push_sentinel = make_client(url, protocol=3, timeout_s=timeout_s)
        self.clustered = isinstance(self._client, RedisCluster)

    async def aclose(self) -> None:
        """Close all connections."""
        for owner in (self._client, self._push_client, self._sentinel, self._push_sentinel):
            if owner is not None:
                await owner.aclose()

    async def ping(self) -> None:
        """Ask for an answer: of the server, or of every primary of a Cluster."""
        await (self._client.ping(target_nodes=RedisCluster.PRIMARIES) if self.clustered else self._client.ping())

    async def execute(self, *command: Any, node: Any = None) -> Any:
        """Run one command, in a Cluster on `node` or where its key lives."""
        return await self._client.execute_command(*command, **({} if node is None else {"target_nodes": node}))

    async def pipeline(self, commands: Sequence[tuple[Any, ...]], *, partial: bool = False) -> list[Any]:
        """Run commands in one round trip, in a Cluster one to a node; a ResponseError stands in its answer's place.

        Args:
            partial: leave the absence of single nodes of a Cluster in their answers' places, too.
        """
        if len(commands) == 1:
            try:
                return [await self._client.execute_command(*commands[0])]
            except ResponseError as error:
                return [error]
        async with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            answers = await pipe.execute(raise_on_error=False)
        for answer in answers:
            # A Cluster's pipeline leaves a node's absence among the answers.
            if isinstance(answer, Exception) and not isinstance(answer, ResponseError) and not partial:
                raise answer
        return cast(list[Any], answers)

    async def primaries(self) -> list[Any]:
        """The nodes to scan: a Cluster's primaries; [None] without one."""
        if not self.clustered:
            return [None]
        await self._client.initialize()
        return list(self._client.get_primaries())

    async def scan(
        self, node: Any, cursor: int, pattern: str, where: tuple[str, str] | None = None
    ) -> tuple[int, list[bytes]]:
        """A page of the keys that match, of one of `primaries`, and where the next begins; 0 after the last.

        Args:
            where: only hashes with this field and value.
        """
        page = ("MATCH", pattern, "COUNT", PAGE)
        command = ("SCAN", cursor, *page) if where is None else ("EVAL", _FIND, 0, cursor, pattern, PAGE, *where)
        cursors, keys = await self.execute(*command, node=node)
        # A Cluster's client answers SCAN with a cursor for each node asked.
        return int(next(iter(cursors.values())) if isinstance(cursors, dict) else cursors), keys

    @property
    def cold(self) -> bool:
        """Whether the next command must first set a connection up. Not known of a Cluster, which has many pools."""
        idle = [] if self.clustered else self._client.connection_pool._available_connections
        return not self.clustered and not (idle and idle[-1].is_connected)

    async def drop_idle(self) -> None:
        """Close the connections that nothing uses now. A Cluster's client follows its nodes by itself."""
        if not self.clustered:
            # Taken out first: the pool's own `disconnect` closes one that a request has just been given.
            pool = self._client.connection_pool
            idle, pool._available_connections = pool._available_connections, []
            for connection in idle:
                await connection.disconnect(nowait=True)

    async def push_connections(self) -> list[AbstractConnection]:
        """Connections for pushes: one, or one to each primary."""
        if not self.clustered:
            return [await self._push_client.connection_pool.get_connection()]
        await self._push_client.initialize()
        nodes = self._push_client.get_primaries()
        connections = [node.connection_class(**node.connection_kwargs) for node in nodes]
        try:
            for connection in connections:
                await connection.connect()
        except BaseException:
            await self.release_push_connections(connections)
            raise
        return connections

    async def release_push_connections(self, connections: Sequence[AbstractConnection]) -> None:
        """Close what `push_connections` gave."""
        for connection in connections:
            await connection.disconnect(nowait=True)
            if not self.clustered:
                await self._push_client.connection_pool.release(connection)

    def moved(self, connections: Sequence[Any]) -> bool:
        """Whether a Cluster has other primaries now than those of `connections`."""
        known = {(connection.host, connection.port) for connection in connections}
        return self.clustered and {(node.host, node.port) for node in self._client.get_primaries()} != known


def make_client(url: str, *, protocol: int, timeout_s: float = SOCKET_TIMEOUT_S) -> tuple[Any, Any]:
    """A client (`redis.asyncio.Redis`) of `url`, speaking RESP `protocol`, and the Sentinel group to close with it.

    It connects at first use. Both are Any, since redis-py's annotations describe the blocking client as well.

    Sentinel's form is `redis+sentinel://[user:pass@]host1:port,host2:port/<service>[/db]`; the credentials are the
    data server's, and `?sentinel_username=&sentinel_password=` are the Sentinels' own where they have any. A
    Cluster's is `redis+cluster://[user:pass@]host1:port,host2:port`; a few of its nodes are enough. With `rediss`,
    `?ssl_ca_certs=`, `ssl_certfile=` and `ssl_keyfile=` name files.

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
