"""The tenant store: a Redis or Valkey server behind a breaker, and what is read from it."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError, WatchError
from redis.exceptions import TimeoutError as RedisTimeoutError

from policies.errors import Unavailable
from tenants import keyspace
from tenants.breaker import CircuitBreaker
from tenants.connection import SOCKET_TIMEOUT_S, describe, make_client
from tenants.records import RawHash, RecordError
from tenants.scripts import Script

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
_AWAY = (RedisConnectionError, RedisTimeoutError, OSError, TimeoutError)

Command = tuple[Any, ...]
Call = tuple[Sequence[str], Sequence[Any]]
"""Keys and arguments of one run of a script."""
T = TypeVar("T")


class TenantStore:
    """One gateway's or one command's access to the store. Every method raises Unavailable while the store is away.

    `url` may hold a password; `address` is what logs may show. Answers are bytes, undecoded, so that a record with
    junk in it can be named instead of failing the whole read.
    """

    def __init__(self, url: str, *, timeout_s: float = SOCKET_TIMEOUT_S) -> None:
        """Prepare for `url` without connecting. Raises ValueError for a malformed URL."""
        self.url = url
        self.address = describe(url)
        self.breaker = CircuitBreaker()
        self._client, self._sentinel = make_client(url, protocol=2, timeout_s=timeout_s)
        # Invalidations are pushed, which RESP2 cannot; a pool of its own keeps that one connection apart.
        self._push_client, self._push_sentinel = make_client(url, protocol=3, timeout_s=timeout_s)
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)

    @classmethod
    async def connect(cls, url: str, *, timeout_s: float = SOCKET_TIMEOUT_S) -> TenantStore:
        """Reach the store at `url`: redis://, rediss://, unix://, redis+sentinel:// or rediss+sentinel://.

        `timeout_s` bounds each connection and each answer; a gateway wants it short, a person can wait.

        Raises:
            ValueError: the URL is malformed.
            Unavailable: the store does not answer.
        """
        store = cls(url, timeout_s=timeout_s)
        try:
            await store.execute("PING")
        except BaseException:
            await store.aclose()
            raise
        return store

    async def aclose(self) -> None:
        """Close all connections."""
        for owner in (self._client, self._push_client, self._sentinel, self._push_sentinel):
            if owner is not None:
                await owner.aclose()

    async def __aenter__(self) -> TenantStore:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def execute(self, *command: Any) -> Any:
        """Run one command."""
        return await self._guarded(lambda: self._client.execute_command(*command))

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in one round trip. An answer that is a ResponseError stands in its place, unraised."""

        async def run() -> list[Any]:
            async with self._client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return await pipe.execute(raise_on_error=False)  # type: ignore[no-any-return]

        return await self._guarded(run)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script, loading it where the server has forgotten it."""
        answer = (await self.run_many(script, [(keys, args)]))[0]
        if isinstance(answer, ResponseError):
            raise self._refused(answer)
        return answer

    async def run_many(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run a script once per call in one round trip; an error stands in its answer's place."""
        commands = [("EVALSHA", script.sha, len(keys), *keys, *args) for keys, args in calls]
        answers = await self._batch(commands)
        # A script that the server does not know has not run, so running it now repeats nothing.
        missing = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missing:
            await self.execute("SCRIPT", "LOAD", script.text)
            for i, answer in zip(missing, await self._batch([commands[i] for i in missing]), strict=True):
                answers[i] = answer
        return answers

    async def _batch(self, commands: Sequence[Command]) -> list[Any]:
        if len(commands) > 1:
            return await self.pipeline(commands)

        async def run() -> Any:
            try:
                return await self._client.execute_command(*commands[0])
            except ResponseError as error:
                return error

        return [await self._guarded(run)]

    async def transact(
        self, keys: Sequence[str], build: Callable[[list[dict[bytes, bytes]]], Sequence[Command]]
    ) -> None:
        """Read hashes, then apply the commands built from them, all or none, if nobody changed them meanwhile.

        Raises:
            RecordError: a key holds something else than a hash.
        """

        async def run() -> None:
            async with self._client.pipeline(transaction=True) as pipe:
                await pipe.watch(*keys)
                hashes = []
                for key in keys:
                    try:
                        hashes.append(await pipe.execute_command("HGETALL", key))
                    except ResponseError as error:
                        raise _not_a_hash(key, error) from None
                commands = build(hashes)
                pipe.multi()
                for command in commands:
                    pipe.execute_command(*command)
                await pipe.execute()

        for _ in range(5):
            try:
                return await self._guarded(run)
            except WatchError:
                continue
        raise Unavailable("The record keeps changing; try again.")

    async def hashes(self, *keys: str) -> list[RawHash]:
        """Several records in one round trip; a missing one is empty. Raises RecordError where a key is no hash."""
        answers = await self.pipeline([("HGETALL", key) for key in keys])
        for key, answer in zip(keys, answers, strict=True):
            if isinstance(answer, ResponseError):
                if str(answer).startswith("WRONGTYPE"):
                    raise _not_a_hash(key, answer)
                raise self._refused(answer)
        return answers

    async def scan(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins with `prefix`, in no order, without blocking the server. May repeat a key."""
        cursor: Any = 0
        # Names are ours or validated, but a prefix is matched literally all the same.
        pattern = "".join(f"\\{c}" if c in "*?[]\\^" else c for c in prefix) + "*"
        while True:
            cursor, keys = await self.execute("SCAN", cursor, "MATCH", pattern, "COUNT", 500)
            for key in keys:
                yield key.decode("utf-8", "backslashreplace")
            if int(cursor) == 0:
                return

    async def noise_secret(self) -> str:
        """The installation's noise secret, 64 hex digits, created at the first call. Back it up."""
        await self.execute("SET", keyspace.NOISE_SECRET, secrets.token_hex(32), "NX")
        value = (await self.execute("GET", keyspace.NOISE_SECRET) or b"").decode("ascii", "replace")
        if len(value) != 64 or set(value) - set("0123456789abcdef"):
            raise RecordError(keyspace.NOISE_SECRET, "", "expected 64 lower-case hex digits")
        return cast(str, value)

    async def load_calibration(self, fingerprint: str) -> dict[str, Any] | None:
        """The stored calibration of a model's fingerprint. Raises RecordError where it is no JSON object."""
        stored = await self.execute("GET", keyspace.calibration(fingerprint))
        if stored is None:
            return None
        try:
            curve = json.loads(stored)
        except ValueError:
            curve = None
        if not isinstance(curve, dict):
            raise RecordError(keyspace.calibration(fingerprint), "", "is not a JSON object")
        return curve

    async def save_calibration(self, fingerprint: str, payload: str) -> str:
        """Store a calibration (JSON) unless one is there; the stored one is returned, so that all replicas agree."""
        key = keyspace.calibration(fingerprint)
        await self.execute("SET", key, payload, "NX")
        stored = await self.execute("GET", key)
        return payload if stored is None else cast(str, stored.decode())

    async def push_connection(self) -> AbstractConnection:
        """A RESP3 connection of its own, for server-side invalidation; give it back by `release_push_connection`."""
        return cast(AbstractConnection, await self._push_client.connection_pool.get_connection())

    async def release_push_connection(self, connection: AbstractConnection) -> None:
        """Close a connection that `push_connection` gave."""
        await connection.disconnect(nowait=True)
        await self._push_client.connection_pool.release(connection)

    async def _guarded(self, operation: Callable[[], Awaitable[T]]) -> T:
        async with self._slots:
            # Asked with a slot in hand: those that waited for one need not each find out that the store is gone.
            self.breaker.check()
            try:
                result = await operation()
            except _AWAY as error:
                if self.breaker.closed:
                    logger.warning("tenant store %s is away: %s", self.address, type(error).__name__)
                self.breaker.fail("The tenant store is away; try again shortly.")
                raise Unavailable(self.breaker.reason) from error
            except ResponseError as error:
                self.breaker.succeed()
                raise self._refused(error) from error
        self.breaker.succeed()
        return result

    def _refused(self, error: ResponseError) -> Unavailable:
        # The server's first word (OOM, READONLY, NOPERM, ...) tells an operator enough and holds no data.
        logger.error("tenant store %s refused a command: %s", self.address, str(error).split(" ", 1)[0][:40])
        return Unavailable("The tenant store refused a command; an operator must look at it.", retry_after=5)


def _not_a_hash(key: str, error: ResponseError) -> RecordError:
    problem = "is not a hash" if str(error).startswith("WRONGTYPE") else "cannot be read"
    return RecordError(key, "", problem)
