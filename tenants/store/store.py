"""The tenant store: a Redis or Valkey server or Cluster, each node behind a breaker, and what is read from it."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, cast

from redis.exceptions import NoScriptError, ResponseError

from tenants.records import keyspace
from tenants.records.hashes import RawHash
from tenants.records.schema import RecordError
from tenants.store import scripts
from tenants.store.connection import SOCKET_TIMEOUT_S
from tenants.store.link import Command
from tenants.store.scripts import Script
from tenants.store.servers import Servers

READ_BATCH = 500
PAGE = 1000
_FIND = ("EVAL", scripts.load("store/find").text, 0)
Call = tuple[Sequence[str], Sequence[Any]]
"""Keys and arguments of one run of a script."""


class TenantStore:
    """One gateway's or one command's access to the store. Every method raises Unavailable while the store is away.

    Answers are bytes, undecoded, so that a record with
    junk in it can be named instead of failing the whole read.

    Args:
        timeout_s: bound of each answer; a gateway wants it short, a person can wait.
        locate: asked for the URL while the store is away, where it can move.
    """

    def __init__(
        self, url: str, *, timeout_s: float = SOCKET_TIMEOUT_S, locate: Callable[[], Awaitable[str]] | None = None
    ) -> None:
        """Prepare for `url` without connecting. Raises ValueError for a malformed URL."""
        self.servers = Servers(url, timeout_s, locate)

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
            await store.servers.connect()
        except BaseException:
            await store.aclose()
            raise
        return store

    async def aclose(self) -> None:
        """Close all connections."""
        await self.servers.aclose()

    @property
    def url(self) -> str:
        """Where it is now. May hold a password."""
        return self.servers.url

    @property
    def address(self) -> str:
        """The same for people and logs."""
        return self.servers.address

    async def __aenter__(self) -> TenantStore:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def clustered(self) -> bool:
        """Whether its keys live on several nodes, so that no script may touch any two of them."""
        return self.servers.clustered

    async def identity(self) -> str:
        """This store's name for itself, drawn by whoever asks first: it moves with the data, not with the address."""
        return await self.place(keyspace.STORE_ID, secrets.token_hex(8))

    async def execute(self, *command: Any, node: str | None = None) -> Any:
        """Run one command, where its key lives or on `node`."""
        answer = (await self.servers.send([command], [node] if node else None))[0]
        if isinstance(answer, ResponseError):
            raise self.servers.refused(answer) from answer
        return answer

    async def pipeline(self, commands: Sequence[Command], *, partial: bool = False) -> list[Any]:
        """Run commands in one round trip, in a Cluster one to a node.

        An answer that is a ResponseError stands in its place, unraised.

        Args:
            partial: so does, in a Cluster, Unavailable where a command's node is away, which otherwise fails them all.
        """
        return await self.servers.send(commands, partial=partial)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script, loading it where the server has forgotten it."""
        answer = (await self.run_many(script, [(keys, args)]))[0]
        if isinstance(answer, ResponseError):
            raise self.servers.refused(answer)
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
        await self.servers.note_refusals([keys[0] for keys, _ in calls], answers)
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
                        raise self.servers.refused(answer)
                    answer = RecordError(key, "", "is not a hash")
                answers.append(answer)
        return answers

    async def scan(self, prefix: str, where: tuple[str, str] | None = None) -> AsyncIterator[str]:
        """Every key that begins with `prefix`, in no order, in pages; only hashes with a field of a value if `where`.

        May repeat a key.
        """
        # Names are ours or validated, but a prefix is matched literally all the same.
        pattern = "".join(f"\\{c}" if c in "*?[]\\^" else c for c in prefix) + "*"
        for node in await self.servers.primaries():
            cursor = 0
            while True:
                page = ("MATCH", pattern, "COUNT", PAGE)
                command = ("SCAN", cursor, *page) if where is None else (*_FIND, cursor, pattern, PAGE, *where)
                found, keys = await self.execute(*command, node=node)
                cursor = int(found)
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
