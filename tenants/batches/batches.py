"""Batches in the store: what was asked, how far it is, which gateway works on it, and the result of each line once."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from policies.errors import LimitExceeded, NotFound
from tenants.records import keyspace
from tenants.store import scripts
from tenants.store.store import TenantStore

HELD, GONE = "held", ""
"""What `Batches.claim` says in a status's place: another gateway has it; it has ended, or is not there."""
MOST_KEPT = 1000
"""Batches of a tenant, the ended ones included."""
ENDED = ("failed", "completed", "expired", "cancelled")
_CREATE, _CLAIM, _MOVE = (scripts.load(f"batches/{name}") for name in ("create", "claim", "move"))
_RECORD, _CANCEL = (scripts.load(f"batches/{name}") for name in ("record", "cancel"))


@dataclass(frozen=True)
class Asked:
    """What was asked for; it does not change. Times are unix seconds.

    Attributes:
        digest: SHA-256 of the API key that asked, as whose requests the lines are made.
        output_keep_s: seconds that its output files are kept.
    """

    id: str
    tenant: str
    digest: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    output_keep_s: int
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Batch:
    """A batch as it stands.

    Attributes:
        status: validating, in_progress, finalizing, cancelling, or one of `ENDED`.
        total, completed, failed: lines.
        size: bytes of the results so far.
        ending: the status in which it ends, once that is known.
        times: unix second by status in which it was reached.
        errors: why it failed: code, message, line and param of each fault.
    """

    asked: Asked
    status: str
    total: int = 0
    completed: int = 0
    failed: int = 0
    size: int = 0
    ending: str = ""
    times: Mapping[str, int] = field(default_factory=dict)
    errors: Sequence[Mapping[str, Any]] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ENDED


def _batch(raw: Mapping[bytes, bytes]) -> Batch:
    given = {name.decode(): value.decode() for name, value in raw.items()}
    return Batch(
        asked=Asked(**json.loads(given["asked"])),
        status=given["status"],
        total=int(given.get("total", 0)),
        completed=int(given.get("completed", 0)),
        failed=int(given.get("failed", 0)),
        size=int(given.get("bytes", 0)),
        ending=given.get("ending", ""),
        times={name[:-3]: int(value) for name, value in given.items() if name.endswith("_at")},
        errors=json.loads(given.get("errors", "[]")),
        output_file_id=given.get("output_file_id"),
        error_file_id=given.get("error_file_id"),
    )


class Batches:
    """Tenants' batches. Every method raises Unavailable while the store is away."""

    def __init__(self, store: TenantStore) -> None:
        self._store = store

    async def create(self, asked: Asked, *, most_open: int, keep_s: int) -> Batch:
        """Enter a batch that somebody is to begin.

        Args:
            most_open: batches of the tenant that have not ended.
            keep_s: seconds that it can be read.

        Raises:
            LimitExceeded: the tenant has as many open as it may.
        """
        # Found before it is there rather than never: gateways drop what they do not find, after a while.
        await self._store.execute("ZADD", keyspace.BATCHES_OPEN, asked.created_at, f"{asked.tenant} {asked.id}")
        keys = [_key(asked), keyspace.batches(asked.tenant), keyspace.open_batches(asked.tenant)]
        stem = keyspace.batch(asked.tenant, "")
        fields = ["asked", json.dumps(asked.__dict__), "status", "validating"]
        limits = [asked.id, asked.created_at, most_open, MOST_KEPT, keep_s, stem]
        if not await self._store.run(_CREATE, keys, [*limits, *fields]):
            await self.forget(asked.tenant, asked.id)
            raise LimitExceeded(
                f"This tenant has {most_open} batches that have not ended, as many as it may; wait for one, or cancel"
                " it.",
                retry_after=60,
                retry_soon=False,
                code="too_many_batches",
            )
        return Batch(asked, "validating")

    async def get(self, tenant: str, batch_id: str) -> Batch:
        """One of a tenant's. Raises NotFound."""
        there = await self._store.execute("ZSCORE", keyspace.batches(tenant), batch_id)
        raw = {} if there is None else (await self._store.hashes(keyspace.batch(tenant, batch_id)))[0]
        if not raw:
            raise NotFound(f"No batch '{batch_id[:80]}'.", code="batch_not_found")
        return _batch(raw)

    async def all(self, tenant: str) -> list[Batch]:
        """A tenant's batches, the newest first."""
        return await self._read(tenant, keyspace.batches(tenant))

    async def open_of(self, tenant: str) -> list[Batch]:
        """Those that have not ended."""
        return await self._read(tenant, keyspace.open_batches(tenant))

    async def _read(self, tenant: str, index: str) -> list[Batch]:
        ids = [name.decode() for name in await self._store.execute("ZRANGEBYSCORE", index, "-inf", "+inf")]
        found = await self._store.hashes(*(keyspace.batch(tenant, batch_id) for batch_id in ids))
        if gone := [batch_id for batch_id, raw in zip(ids, found, strict=True) if not raw]:
            await self._store.execute("ZREM", index, *gone)
        batches = [_batch(raw) for raw in found if raw]
        return sorted(batches, key=lambda batch: (-batch.asked.created_at, batch.asked.id))

    async def cancel(self, tenant: str, batch_id: str) -> Batch:
        """Ask for its end; the batch as it then stands. Raises NotFound."""
        await self.get(tenant, batch_id)
        await self._store.run(_CANCEL, [keyspace.batch(tenant, batch_id)], [int(time.time())])
        return await self.get(tenant, batch_id)

    async def open(self) -> list[tuple[str, str, int]]:
        """Tenant, id and unix second of every batch that has not ended, the oldest first."""
        raw = await self._store.execute("ZRANGEBYSCORE", keyspace.BATCHES_OPEN, "-inf", "+inf", "WITHSCORES")
        pairs = zip(raw[::2], raw[1::2], strict=True)
        return [(*name.decode().split(" ", 1), int(float(score))) for name, score in pairs]

    async def forget(self, tenant: str, batch_id: str) -> None:
        """Gateways need look at it no more."""
        await self._store.execute("ZREM", keyspace.BATCHES_OPEN, f"{tenant} {batch_id}")

    async def claim(self, tenant: str, batch_id: str, token: str, lease_s: float) -> str:
        """Take a batch for the gateway of a token, or keep it; 0 seconds give it back. Its status, `HELD` or `GONE`."""
        keys = [keyspace.batch(tenant, batch_id), keyspace.open_batches(tenant)]
        answer = await self._store.run(_CLAIM, keys, [batch_id, token, round(lease_s * 1000)])
        return str(answer.decode())

    async def move(
        self, asked: Asked, token: str, status: str, *, fields: Mapping[str, Any] | None = None, before: str = ""
    ) -> bool:
        """Give a batch another status, and other fields with it; False where it is this gateway's no more.

        Args:
            before: the status that it must have now; "" for any.
        """
        keys = [_key(asked), keyspace.open_batches(asked.tenant), keyspace.batch_results(asked.tenant, asked.id)]
        given = {"status": status, f"{status}_at": int(time.time()), **(fields or {})}
        flat = [part for pair in given.items() for part in pair]
        ended = status in ENDED
        moved = bool(await self._store.run(_MOVE, keys, [asked.id, token, before, int(ended), *flat]))
        if moved and ended:
            await self.forget(asked.tenant, asked.id)
        return moved

    async def record(self, asked: Asked, token: str, number: int, result: bytes, *, failed: bool, keep_s: int) -> str:
        """Note a line's result unless it has one; the batch's status, or `GONE` where it is this gateway's no more."""
        keys = [_key(asked), keyspace.batch_results(asked.tenant, asked.id)]
        args = [token, number, "failed" if failed else "completed", result, keep_s]
        answer = await self._store.run(_RECORD, keys, args)
        return str(answer.decode())

    async def done(self, asked: Asked) -> set[int]:
        """Numbers of the lines that have a result."""
        return {
            int(name) for name in await self._store.execute("HKEYS", keyspace.batch_results(asked.tenant, asked.id))
        }

    async def results(self, asked: Asked, numbers: Sequence[int]) -> list[bytes | None]:
        """The results of some lines."""
        found: list[bytes | None] = await self._store.execute(
            "HMGET", keyspace.batch_results(asked.tenant, asked.id), *numbers
        )
        return found


def _key(asked: Asked) -> str:
    return keyspace.batch(asked.tenant, asked.id)
