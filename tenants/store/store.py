"""The tenant store: a Redis or Valkey server behind a breaker, and what is read from it."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisClusterException, ResponseError, SlotNotCoveredError
from redis.exceptions import TimeoutError as RedisTimeoutError

from policies.errors import Unavailable
from tenants.records import keyspace
from tenants.records.hashes import RawHash
from tenants.records.schema import RecordError
from tenants.store import errors, tasks
from tenants.store.breaker import CircuitBreaker
from tenants.store.connection import SOCKET_TIMEOUT_S, Link, describe
from tenants.store.loop_timeout import LoopTimeout
from tenants.store.scripts import Script

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
"""A round of requests opens them all at once, and each costs five round trips before its first answer."""
FIRST_PROBE_S = 0.01
LONGEST_PROBE_S = 0.5
READ_BATCH = 500
SETTING_UP = 2.0
"""How much longer than an answer a new connection may take: names, TLS and Sentinel come before it."""
_AWAY = (RedisConnectionError, RedisTimeoutError, RedisClusterException, SlotNotCoveredError, OSError, TimeoutError)

Command = tuple[Any, ...]
Call = tuple[Sequence[str], Sequence[Any]]
"""Keys and arguments of one run of a script."""
T = TypeVar("T")


class TenantStore:
    """One gateway's or one command's access to the store. Every method raises Unavailable while the store is away.

    `url` may hold a password; `address` is what logs may show. Answers are bytes, undecoded, so that a record with
    junk in it can be named instead of failing the whole read.

    Args:
        timeout_s: bound of each answer; a gateway wants it short, a person can wait.
        locate: asked for the URL while the store is away, where it can move.
    """

    def __init__(
        self, url: str, *, timeout_s: float = SOCKET_TIMEOUT_S, locate: Callable[[], Awaitable[str]] | None = None
    ) -> None:
        """Prepare for `url` without connecting. Raises ValueError for a malformed URL."""
        self.breaker = CircuitBreaker()
        self.refusing = ""
        self._timeout_s = timeout_s
        self._locate = locate
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._prober: asyncio.Task[None] | None = None
        self._open(url)

    def _open(self, url: str) -> None:
        self.url = url
        self.address = describe(url)
        # The client's own limit comes after ours, which knows of an event loop that was late.
        self._link = Link(url, 50 * self._timeout_s)

    @classmethod
    async def connect(
        cls, url: str, *, timeout_s: float = SOCKET_TIMEOUT_S, locate: Callable[[], Awaitable[str]] | None = None
    ) -> TenantStore:
        """Reach the store at `url`, of one of `connection.SCHEMES`.

        Raises:
            ValueError: the URL is malformed.
            Unavailable: the store does not answer.
        """
        store = cls(url, timeout_s=timeout_s, locate=locate)
        try:
            await store._guarded(store._link.ping, SETTING_UP)
        except BaseException:
            await store.aclose()
            raise
        return store

    async def aclose(self) -> None:
        """Close all connections."""
        prober, self._prober = self._prober, None
        await tasks.end(prober)
        await self._link.aclose()

    async def __aenter__(self) -> TenantStore:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def clustered(self) -> bool:
        """Whether its keys live on several nodes, so that no script may touch any two of them."""
        return self._link.clustered

    async def identity(self) -> str:
        """This store's name for itself, drawn by whoever asks first: it moves with the data, not with the address."""
        return await self.place(keyspace.STORE_ID, secrets.token_hex(8))

    @property
    def problem(self) -> str:
        """What is wrong with the store, for readiness; "" where nothing is."""
        if away := self.breaker.open_for():
            return f"the tenant store has been away for {away:.0f} s; known keys go on under local limits"
        if self.refusing:
            return f"the tenant store refuses to count ({self.refusing}); known keys go on under local limits"
        return ""

    async def execute(self, *command: Any) -> Any:
        """Run one command."""
        return await self._guarded(lambda: self._link.execute(*command))

    async def pipeline(self, commands: Sequence[Command], *, partial: bool = False) -> list[Any]:
        """Run commands in one round trip. An answer that is a ResponseError stands in its place, unraised.

        Args:
            partial: so does, in a Cluster, the absence of a command's node, which otherwise fails them all.
        """
        return await self._guarded(lambda: self._link.pipeline(commands, partial=partial))

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script, loading it where the server has forgotten it."""
        answer = (await self.run_many(script, [(keys, args)]))[0]
        if isinstance(answer, ResponseError):
            raise self._refused(answer)
        return answer

    async def run_many(self, script: Script, calls: Sequence[Call], *, partial: bool = False) -> list[Any]:
        """Run a script once per call in one round trip; an error stands in its answer's place.

        Args:
            partial: as of `pipeline`.
        """
        words = [("EVALSHA", script.sha, len(keys), *keys, *args) for keys, args in calls]
        answers = await self.pipeline(words, partial=partial)
        # A script that the server does not know has not run, so running it now repeats nothing.
        missing = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missing:
            again = [("EVAL", script.text, len(calls[i][0]), *calls[i][0], *calls[i][1]) for i in missing]
            for i, answer in zip(missing, await self.pipeline(again, partial=partial), strict=True):
                answers[i] = answer
        failures = [errors.code(a) for a in answers if isinstance(a, ResponseError) and errors.passes(a)]
        self.refusing = failures[0] if failures else ""
        if self.refusing == "READONLY":
            # A name may lead to another server since a failover: new connections ask for it again.
            await self._link.drop_idle()
        return answers

    async def hashes(self, *keys: str) -> list[RawHash]:
        """Several records in one round trip; a missing one is empty. Raises RecordError where a key is no hash."""
        answers = await self.try_hashes(keys)
        for answer in answers:
            if isinstance(answer, RecordError):
                raise answer
        return cast(list[RawHash], answers)

    async def try_hashes(self, keys: Sequence[str]) -> list[RawHash | RecordError]:
        """As `hashes`, with the error in its record's place."""
        answers: list[RawHash | RecordError] = []
        # One call's answers are decoded without a pause, so many of them would hold up the event loop.
        for start in range(0, len(keys), READ_BATCH):
            batch = keys[start : start + READ_BATCH]
            for key, answer in zip(batch, await self.pipeline([("HGETALL", key) for key in batch]), strict=True):
                if isinstance(answer, ResponseError):
                    if not str(answer).startswith("WRONGTYPE"):
                        raise self._refused(answer)
                    answer = RecordError(key, "", "is not a hash")
                answers.append(answer)
        return answers

    async def scan(self, prefix: str, where: tuple[str, str] | None = None) -> AsyncIterator[str]:
        """Every key that begins with `prefix`, in no order, in pages; only hashes with a field of a value if `where`.

        May repeat a key.
        """
        # Names are ours or validated, but a prefix is matched literally all the same.
        pattern = "".join(f"\\{c}" if c in "*?[]\\^" else c for c in prefix) + "*"
        for node in await self._guarded(self._link.primaries):
            cursor = 0
            while True:
                cursor, keys = await self._guarded(partial(self._link.scan, node, cursor, pattern, where))
                for key in keys:
                    yield key.decode("utf-8", "backslashreplace")
                if cursor == 0:
                    break

    async def place(self, key: str, text: str) -> str:
        """Set a text unless one is there, so that of several writers one wins; what is there then."""
        await self.execute("SET", key, text, "NX")
        stored = await self.execute("GET", key)
        return text if stored is None else cast(str, stored.decode("utf-8", "replace"))

    async def load_calibration(self, fingerprint: str) -> dict[str, Any] | None:
        """The stored calibration of a model's fingerprint. Raises RecordError where it is no JSON object."""
        return await self.load_json(keyspace.calibration(fingerprint))

    async def load_json(self, key: str) -> dict[str, Any] | None:
        """A stored JSON object. Raises RecordError where it is none."""
        stored = await self.execute("GET", key)
        if stored is None:
            return None
        try:
            found = json.loads(stored)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RecordError(key, "", "is not a JSON object")
        return found

    async def save_calibration(self, fingerprint: str, payload: str) -> str:
        """Store a calibration (JSON) unless one is there; the stored one is returned, so that all replicas agree."""
        return await self.place(keyspace.calibration(fingerprint), payload)

    async def push_connections(self) -> list[AbstractConnection]:
        """RESP3 connections of their own, for server-side invalidation: one, or one to each primary of a Cluster."""
        return await self._link.push_connections()

    async def release_push_connections(self, connections: Sequence[AbstractConnection]) -> None:
        """Close what `push_connections` gave."""
        await self._link.release_push_connections(connections)

    def moved(self, connections: Sequence[AbstractConnection]) -> bool:
        """Whether a Cluster has other primaries now than those of `connections`."""
        return self._link.moved(connections)

    async def _guarded(self, operation: Callable[[], Awaitable[T]], patience: float = 1.0) -> T:
        async with self._slots:
            # Asked with a slot in hand: those that waited for one need not each find out that the store is gone.
            self.breaker.check()
            patience = max(patience, SETTING_UP if self._link.cold else 1.0)
            try:
                async with LoopTimeout(patience * self._timeout_s):
                    return await operation()
            except ResponseError as error:
                raise self._refused(error) from error
            except _AWAY as error:
                if self.breaker.closed:
                    logger.warning("tenant store %s is away: %s", self.address, type(error).__name__)
                self.breaker.fail("The tenant store is away; try again shortly.")
                if self._prober is None or self._prober.done():
                    self._prober = asyncio.create_task(self._probe(), name="tenants-probe")
                raise Unavailable(self.breaker.reason) from error

    async def _probe(self) -> None:
        """Ask until the store answers: no request waits for that, and an idle gateway heals as well."""
        pause = FIRST_PROBE_S
        while not self.breaker.closed:
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PROBE_S)
            try:
                # The first sets a connection up, which may take longer; the second is what a request would meet.
                for patience in (SETTING_UP, 1.0):
                    async with LoopTimeout(patience * self._timeout_s):
                        await self._link.ping()
            except (*_AWAY, ResponseError):
                await self._follow()
                continue
            logger.warning("tenant store %s is back after %.1f s", self.address, self.breaker.open_for())
            self.breaker.succeed()

    async def _follow(self) -> None:
        """Go where the store has moved to."""
        if self._locate is None:
            return
        try:
            async with asyncio.timeout(LONGEST_PROBE_S):
                url = await self._locate()
        except Exception as error:  # whoever knows the address may be restarting too
            logger.debug("the store's address is not known now: %s", type(error).__name__)
            return
        if url != self.url:
            link = self._link
            self._open(url)
            logger.warning("tenant store has moved to %s", self.address)
            await link.aclose()

    def _refused(self, error: ResponseError) -> Unavailable:
        logger.error("tenant store %s refused a command: %s", self.address, errors.code(error))
        return errors.unavailable(error)
