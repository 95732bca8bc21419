"""The connections to one server, or to the nodes of a Cluster: where each command goes, and what it is answered.

Methods raise redis-py's errors; nothing is connected before it is used. A node is named; a single server is "".
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, cast

from hiredis import pack_command
from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, ResponseError, SlotNotCoveredError, TryAgainError

from tenants.store.connection import make_client

SLOTS = 16384
MOST_REDIRECTS = 8
TRY_AGAIN_S = 0.05
UNSERVED = "(no node)"
"""The home of keys whose slot no node of a Cluster serves."""
PUSH_CONNECT_S = 0.7
"""A node's push connection; the others do not wait longer for it."""
_SCRIPTS = ("EVAL", "EVALSHA")
_ELSEWHERE = (MovedError, AskError, TryAgainError)

Command = tuple[Any, ...]


def open_link(url: str, timeout_s: float) -> ServerLink | ClusterLink:
    """The connections of a URL. Raises ValueError where it is malformed."""
    client, sentinel = make_client(url, protocol=2, timeout_s=timeout_s, guarded=True)
    push_client, push_sentinel = make_client(url, protocol=3, timeout_s=timeout_s)
    if isinstance(client, RedisCluster):
        return ClusterLink(client, push_client)
    return ServerLink(client, push_client, [owner for owner in (sentinel, push_sentinel) if owner is not None])


class ServerLink:
    """One server: a pool for commands, and another for pushes, which RESP2 cannot have."""

    clustered = False
    mapped = True

    def __init__(self, client: Any, push_client: Any, sentinels: Sequence[Any] = ()) -> None:
        self._client, self._push_client, self._sentinels = client, push_client, sentinels

    async def aclose(self) -> None:
        """Close all connections."""
        for owner in (self._client, self._push_client, *self._sentinels):
            await owner.aclose()

    async def learn(self) -> None:
        """Find out what nodes there are: this is one."""

    def home(self, key: str | None) -> str:
        """The node on which a key lives."""
        return ""

    def homes(self, commands: Sequence[Command]) -> list[str]:
        """The node of each command."""
        return [""] * len(commands)

    async def ping(self, node: str) -> None:
        """Ask a node for an answer."""
        await self._client.ping()

    async def pipeline(self, commands: Sequence[Command], node: str) -> list[Any]:
        """Run commands of one node in one round trip; a ResponseError stands in its answer's place."""
        if len(commands) == 1:
            try:
                run = self._run if commands[0][0] in _SCRIPTS else self._client.execute_command
                return [await run(*commands[0])]
            except ResponseError as error:
                return [error]
        async with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return cast(list[Any], await pipe.execute(raise_on_error=False))

    async def _run(self, *command: Any) -> Any:
        """As the client's `execute_command`, for answers that need no callback: its own path costs as much again."""
        pool = self._client.connection_pool
        connection = pool.get_available_connection()
        try:
            await pool.ensure_connection(connection)
            await connection.send_packed_command(pack_command(command))
            return await connection.read_response()
        finally:
            if connection.should_reconnect() or not connection.is_connected:
                await pool.release(connection)
            else:
                pool._in_use_connections.discard(connection)
                pool._available_connections.append(connection)

    def cold(self, node: str) -> bool:
        """Whether the next command must first set a connection up."""
        idle = self._client.connection_pool._available_connections
        return not (idle and idle[-1].is_connected)

    async def drop_idle(self, node: str) -> None:
        """Close the connections that nothing uses now."""
        # Taken out first: the pool's own `disconnect` closes one that a request has just been given.
        pool = self._client.connection_pool
        idle, pool._available_connections = pool._available_connections, []
        for connection in idle:
            await connection.disconnect(nowait=True)

    async def push_connections(self) -> dict[str, AbstractConnection]:
        """A connection for pushes, by its node's name."""
        return {"": await self._push_client.connection_pool.get_connection()}

    async def release_push_connections(self, connections: Sequence[AbstractConnection]) -> None:
        """Close what `push_connections` gave."""
        for connection in connections:
            await connection.disconnect(nowait=True)
            await self._push_client.connection_pool.release(connection)

    def primaries(self) -> frozenset[str]:
        """The nodes that announce edits."""
        return frozenset([""])


class ClusterLink:
    """The primaries of a Cluster, each asked by itself: redis-py's own client asks about the map before a command of
    anybody's once one node has failed, and may ask the very node that hangs.
    """

    clustered = True

    def __init__(self, client: RedisCluster, push_client: RedisCluster) -> None:
        self._client: Any = client
        self._push_client: Any = push_client

    async def aclose(self) -> None:
        """Close all connections."""
        for owner in (self._client, self._push_client):
            await owner.aclose()

    @property
    def mapped(self) -> bool:
        """Whether it is known which node serves what."""
        return bool(self._client.nodes_manager.slots_cache)

    async def learn(self, doubted: str = "") -> None:
        """Ask which node serves which slot; `doubted` is asked last."""
        await self._client.nodes_manager.initialize(last_failed_node_name=doubted or None)
        self._client._initialize = False

    def home(self, key: str | None) -> str:
        """The node on which a key lives; of no key any node."""
        if key is None:
            default = self._client.get_default_node()
            return UNSERVED if default is None else cast(str, default.name)
        nodes = self._client.nodes_manager.slots_cache.get(key_slot(key.encode()))
        return cast(str, nodes[0].name) if nodes else UNSERVED

    def homes(self, commands: Sequence[Command]) -> list[str]:
        """The node of each command."""
        return [self.home(_key_of(command)) for command in commands]

    def primaries(self) -> frozenset[str]:
        """The nodes that announce edits."""
        return frozenset(node.name for node in self._client.get_primaries())

    async def ping(self, node: str) -> None:
        """Ask a node for an answer, after asking for the map, from which it may be gone."""
        await self.learn(node)
        if node == UNSERVED:
            if len(self._client.nodes_manager.slots_cache) < SLOTS:
                raise SlotNotCoveredError("some slots have no node")
        elif node in self.primaries():
            await self._on(node, [("PING",)])

    async def pipeline(self, commands: Sequence[Command], node: str) -> list[Any]:
        """Run commands of one node in one round trip; a ResponseError stands in its answer's place."""
        answers = await self._on(node, commands)
        for number, answer in enumerate(answers):
            if isinstance(answer, _ELSEWHERE):
                answers[number] = await self._redirected(commands[number], answer)
        return answers

    async def _redirected(self, command: Command, answer: Any) -> Any:
        """Go where a node says that a slot has gone to, or is going to."""
        for _ in range(MOST_REDIRECTS):
            if isinstance(answer, MovedError):
                await self._client.nodes_manager.move_slot(answer)
                answer = (await self._on(self.home(_key_of(command)), [command]))[0]
            elif isinstance(answer, AskError):
                answer = (await self._on(f"{answer.host}:{answer.port}", [("ASKING",), command]))[1]
            elif isinstance(answer, TryAgainError):
                await asyncio.sleep(TRY_AGAIN_S)
                answer = (await self._on(self.home(_key_of(command)), [command]))[0]
            else:
                break
        return answer

    async def _on(self, name: str, commands: Sequence[Command]) -> list[Any]:
        node: ClusterNode | None = self._client.get_node(node_name=name)
        if node is None:
            raise SlotNotCoveredError(f"{name} serves nothing")
        sent = [PipelineCommand(number, *command) for number, command in enumerate(commands)]
        try:
            await node.execute_pipeline(sent)
            for command in sent:
                if isinstance(command.result, Exception) and not isinstance(command.result, ResponseError):
                    raise command.result
        except Exception:
            # Of a server that was started again each idle connection would fail one command.
            node.update_active_connections_for_reconnect()
            await node.disconnect_free_connections()
            raise
        return [command.result for command in sent]

    def cold(self, node: str) -> bool:
        """Whether the next command must first set a connection up."""
        known = self._client.get_node(node_name=node)
        return known is None or not (known._free and known._free[0].is_connected)

    async def drop_idle(self, node: str) -> None:
        """Close the connections that nothing uses now. Not needed: a node says where its slots are."""

    async def push_connections(self) -> dict[str, AbstractConnection]:
        """Connections for pushes to the primaries that answer, by their names; one at least, else its error."""
        await self._push_client.nodes_manager.initialize()
        self._push_client._initialize = False
        nodes = self._push_client.get_primaries()
        made = {node.name: node.connection_class(**node.connection_kwargs) for node in nodes}
        try:
            outcomes = await asyncio.gather(*map(_connect, made.values()), return_exceptions=True)
        except BaseException:
            await self.release_push_connections(list(made.values()))
            raise
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if len(errors) == len(made):
            raise errors[0] if errors else SlotNotCoveredError("no node serves anything")
        return {name: own for (name, own), error in zip(made.items(), outcomes, strict=True) if error is None}

    async def release_push_connections(self, connections: Sequence[AbstractConnection]) -> None:
        """Close what `push_connections` gave."""
        for connection in connections:
            await connection.disconnect(nowait=True)


async def _connect(connection: Any) -> None:
    try:
        async with asyncio.timeout(PUSH_CONNECT_S):
            await connection.connect()
    except BaseException:
        with contextlib.suppress(Exception):
            await connection.disconnect(nowait=True)
        raise


def _key_of(command: Command) -> str | None:
    """A command's first key, by the few forms that this program uses; None where it has none."""
    name = str(command[0]).upper()
    if name in _SCRIPTS:
        return str(command[3]) if int(command[2]) else None
    return None if len(command) == 1 or name in _KEYLESS else str(command[1])


_KEYLESS = frozenset(["ACL", "CLIENT", "CLUSTER", "CONFIG", "FLUSHALL", "INFO", "SCAN", "SCRIPT"])
