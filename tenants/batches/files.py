"""Tenants' files in the store, in pieces that expire with them: every gateway has them, and nothing is to be set up."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import asdict, dataclass

from redis.exceptions import ResponseError

from policies.errors import LimitExceeded, NotFound
from tenants.records import keyspace
from tenants.store.errors import unavailable
from tenants.store.link import Command
from tenants.store.store import TenantStore

PART_BYTES = 2**18
"""Of a piece: a server sends one in a millisecond or so, and others' commands wait no longer."""
_AT_ONCE = 4
_UNFINISHED_S = 3600
"""How long pieces stay whose file is never entered, since its gateway died meanwhile."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a tenant's. Times are unix seconds.

    Attributes:
        parts: pieces that it is stored in.
    """

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int
    parts: int


@dataclass(frozen=True)
class Space:
    """How much may be stored: files and bytes of a tenant, and bytes of all tenants."""

    files: int
    tenant_bytes: int
    total_bytes: int


def new_id() -> str:
    """An id that no file has."""
    return f"file-{secrets.token_hex(12)}"


class Files:
    """Reads and writes tenants' files. Every method raises Unavailable while the store is away."""

    def __init__(self, store: TenantStore) -> None:
        self._store = store

    async def all(self, tenant: str) -> list[StoredFile]:
        """A tenant's files, the newest first."""
        raw = (await self._store.hashes(keyspace.files(tenant)))[0]
        found = [StoredFile(**json.loads(text)) for text in raw.values()]
        now = time.time()
        if gone := [file.id for file in found if file.expires_at <= now]:
            await self._store.execute("HDEL", keyspace.files(tenant), *gone)
            await self._note_bytes(tenant)
        return sorted((f for f in found if f.expires_at > now), key=lambda f: (-f.created_at, f.id))

    async def get(self, tenant: str, file_id: str) -> StoredFile:
        """One of them. Raises NotFound."""
        text = (await self._store.execute("HMGET", keyspace.files(tenant), file_id))[0]
        file = None if text is None else StoredFile(**json.loads(text))
        if file is None or file.expires_at <= time.time():
            raise NotFound(f"No file '{file_id[:80]}'.", code="file_not_found")
        return file

    async def left(self, tenant: str, space: Space) -> int:
        """Bytes that a tenant may still store; what has expired is counted until the tenant's files are looked at."""
        held = (await self._store.hashes(keyspace.FILE_BYTES))[0]
        own = sum(file.bytes for file in await self.all(tenant))
        others = sum(int(count) for name, count in held.items() if name != tenant.encode())
        return min(space.tenant_bytes - own, space.total_bytes - own - others)

    async def check(self, tenant: str, size: int, space: Space) -> None:
        """Raises LimitExceeded where there is no room for one more file of so many bytes."""
        held = await self.all(tenant)
        if len(held) >= space.files:
            raise _full(f"This tenant has {len(held)} files, as many as it may")
        if size > (left := await self.left(tenant, space)):
            raise _full(f"The file has {size:,} bytes, and there is room for {max(0, left):,} more")

    async def put(
        self, tenant: str, filename: str, purpose: str, pieces: AsyncIterable[bytes], *, keep_s: int, file_id: str = ""
    ) -> StoredFile:
        """Store a file, whatever room there is.

        Args:
            pieces: of it, of any size.
            keep_s: seconds after which it is gone.
            file_id: "": a new one; another file of this id is written over.
        """
        file_id, size = file_id or new_id(), 0
        keys: list[str] = []
        waiting: list[Command] = []
        async for part in _parts(pieces):
            keys.append(keyspace.file_part(tenant, file_id, len(keys)))
            waiting.append(("SET", keys[-1], part, "EX", _UNFINISHED_S))
            size += len(part)
            if len(waiting) == _AT_ONCE:
                _raise(await self._store.pipeline(waiting))
                waiting = []
        if waiting:
            _raise(await self._store.pipeline(waiting))
        if keys:
            _raise(await self._store.pipeline([("EXPIRE", key, keep_s) for key in keys]))
        now = int(time.time())
        file = StoredFile(file_id, filename, purpose, size, now, now + keep_s, len(keys))
        await self._store.execute("HSET", keyspace.files(tenant), file.id, json.dumps(asdict(file)))
        await self._note_bytes(tenant)
        return file

    async def read(self, tenant: str, file: StoredFile) -> AsyncIterator[bytes]:
        """A file's pieces. Raises NotFound where it went meanwhile."""
        for at in range(file.parts):
            part = await self._store.execute("GET", keyspace.file_part(tenant, file.id, at))
            if part is None:
                raise NotFound(f"The file '{file.id}' has expired.", code="file_not_found")
            yield part

    async def sweep(self) -> None:
        """Count anew what is held, since files expire by themselves."""
        for name in (await self._store.hashes(keyspace.FILE_BYTES))[0]:
            await self.all(name.decode())
            await self._note_bytes(name.decode())

    async def delete(self, tenant: str, file_id: str) -> None:
        """Remove a file. Raises NotFound."""
        file = await self.get(tenant, file_id)
        await self._store.execute("HDEL", keyspace.files(tenant), file.id)
        keys = [keyspace.file_part(tenant, file.id, at) for at in range(file.parts)]
        if keys:
            await self._store.pipeline([("DEL", key) for key in keys])
        await self._note_bytes(tenant)

    async def _note_bytes(self, tenant: str) -> None:
        raw = (await self._store.hashes(keyspace.files(tenant)))[0]
        own = sum(json.loads(text)["bytes"] for text in raw.values())
        if own:
            await self._store.execute("HSET", keyspace.FILE_BYTES, tenant, own)
        else:
            await self._store.execute("HDEL", keyspace.FILE_BYTES, tenant)


def _full(said: str) -> LimitExceeded:
    return LimitExceeded(
        f"{said}; delete some by DELETE /v1/files/<id>.", retry_after=None, retry_soon=False, code="file_storage_full"
    )


async def _parts(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of `PART_BYTES`."""
    held = bytearray()
    async for piece in pieces:
        held += piece
        while len(held) >= PART_BYTES:
            yield bytes(held[:PART_BYTES])
            del held[:PART_BYTES]
    if held:
        yield bytes(held)


def _raise(answers: list[object]) -> None:
    """A refusal that stands among a pipeline's answers, as what it is."""
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise unavailable(answer)
