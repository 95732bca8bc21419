"""The feed of edits: connections on which the servers name every record that any client changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Any, Protocol

from redis.exceptions import RedisError, ResponseError

from policies.errors import Unavailable
from tenants.records import keyspace
from tenants.store import tasks
from tenants.store.loop_timeout import LoopTimeout
from tenants.store.store import TenantStore

logger = logging.getLogger(__name__)

HEARTBEAT_S = 0.25
SILENCE_S = 1.0
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 0.5
UNSUPPORTED_PAUSE_S = 5.0


class Listener(Protocol):
    """Who is told of edits. All three are called on the event loop and must not block."""

    def changed(self, key: str | None) -> None:
        """`key` was written, expired or deleted; None: everything was."""

    def resumed(self) -> None:
        """The feed is up; edits made while it was down were not announced."""

    def lost(self, alive_at: float) -> None:
        """The feed is down; until `alive_at` (monotonic seconds) every edit was announced."""


class InvalidationFeed:
    """Keeps `CLIENT TRACKING ON BCAST` alive over RESP3 connections of its own, and passes on what they say.

    One connection to a server, one to each primary of a Cluster: there every node announces its own keys. Of a node
    that is away nothing is announced (`hears`); the others go on.
    """

    def __init__(self, store: TenantStore, listener: Listener) -> None:
        self.connected = False
        self.alive_at = float("-inf")
        self.problem = "not started"
        self._store = store
        self._listener = listener
        self._absent: frozenset[str] = frozenset()
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start, and wait for the first attempt to succeed or to fail. Raises nothing while the store is away."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="tenants-invalidation")
        await self._tried.wait()

    async def aclose(self) -> None:
        """Stop and close the connections."""
        task, self._task = self._task, None
        await tasks.end(task)

    def hears(self, keys: Iterable[str]) -> bool:
        """Whether edits of all these keys are announced."""
        servers = self._store.servers
        return self.connected and (not self._absent or all(servers.home(key) not in self._absent for key in keys))

    async def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            try:
                await self._session()
            except ResponseError as error:
                self._down(f"the server refuses CLIENT TRACKING ({str(error).split(' ', 1)[0][:40]})")
                pause = UNSUPPORTED_PAUSE_S
            except (RedisError, OSError, TimeoutError) as error:
                pause = FIRST_PAUSE_S if self.connected else min(pause * 2, LONGEST_PAUSE_S)
                self._down(f"no connection ({type(error).__name__})")
            except Exception:
                # The feed must outlive a fault of its own: without it edits wait for the time-to-live.
                logger.exception("invalidation feed failed")
                pause = LONGEST_PAUSE_S
                self._down("failed; see the log")
            self._tried.set()
            await asyncio.sleep(pause)

    def _down(self, problem: str) -> None:
        if self.connected or problem != self.problem:
            logger.warning("invalidation feed of %s: %s", self._store.address, problem)
        self.problem = problem
        if self.connected:
            self.connected = False
            self._listener.lost(self.alive_at)

    async def _session(self) -> None:
        connections: dict[str, Any] = {}
        try:
            async with LoopTimeout(SILENCE_S):
                connections |= await self._store.servers.push_connections()
                for connection in connections.values():
                    await self._track(connection)
            alive_at = dict.fromkeys(connections, time.monotonic())
            self.alive_at = min(alive_at.values())
            self._absent = self._store.servers.absent(connections)
            self.connected, self.problem = True, ""
            self._listener.resumed()
            self._tried.set()
            async with asyncio.TaskGroup() as group:
                for name, connection in connections.items():
                    group.create_task(self._listen(connection, name, alive_at))
                group.create_task(self._watch(connections))
        except* (RedisError, OSError, TimeoutError) as errors:
            # Any of them ends the session; the first says why.
            raise errors.exceptions[0] from None
        finally:
            for connection in connections.values():
                connection._parser.set_invalidation_push_handler(None)
            await self._store.servers.release_push_connections(list(connections.values()))

    async def _watch(self, connections: dict[str, Any]) -> None:
        """Raise once another node serves something, or one that was away answers."""
        servers, absent = self._store.servers, self._absent
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if servers.absent(connections) != absent:
                raise TimeoutError("the cluster has other primaries")
            for name in absent:
                with contextlib.suppress(Unavailable):
                    await servers.ask(name)
                    raise TimeoutError("a node of the cluster is back")

    async def _track(self, connection: Any) -> None:
        # redis-py swallows a handler's exceptions and awaits its answer, so it is a coroutine that cannot fail.
        connection._parser.set_invalidation_push_handler(self._announced)
        prefixes = [part for prefix in keyspace.TRACKED_PREFIXES for part in ("PREFIX", prefix)]
        await connection.send_command("CLIENT", "TRACKING", "ON", "BCAST", *prefixes)
        await connection.read_response()

    async def _listen(self, connection: Any, name: str, alive_at: dict[str, float]) -> None:
        """Read pushes of one connection and ask for a sign of life; raises once it is silent, or has lost its part."""
        pinged_at: float | None = None
        while True:
            asked_at = time.monotonic()
            answer = await connection.read_response(timeout=HEARTBEAT_S, push_request=True, disconnect_on_error=False)
            now = time.monotonic()
            if answer is not None:
                # A PONG comes after every push that the server had queued when it answered.
                alive_at[name], pinged_at = now, None
                self.alive_at = min(alive_at.values())
            elif pinged_at is not None and now - pinged_at > SILENCE_S and now - asked_at < 2 * HEARTBEAT_S:
                # Not where the event loop stood still meanwhile: its answer may lie in the socket.
                raise TimeoutError("the server is silent")
            if pinged_at is None and now - alive_at[name] >= HEARTBEAT_S:
                pinged_at = now
                async with LoopTimeout(SILENCE_S):
                    await connection.send_command("PING")

    async def _announced(self, message: list[Any]) -> None:
        keys = message[1] if len(message) > 1 else None
        for key in keys if keys is not None else [None]:
            self._listener.changed(key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else key)
