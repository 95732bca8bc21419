"""The index of records: one sorted set whose members are their keys and, below `of:`, who belongs to whom.

Kept by every audited change; what is written by hand is found by `tenants check`, which scans, and put in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tenants.records import keyspace, schedule
from tenants.records.hashes import RawHash
from tenants.store.link import Command
from tenants.store.store import READ_BATCH, TenantStore

COMPLETE = "~complete"
"""Member that says that all records of an older store have been put in."""
_PARENTS = {
    keyspace.TENANT: (("tier", keyspace.TIER), ("project", keyspace.PROJECT)),
    keyspace.APIKEY: (("tenant", keyspace.TENANT), ("project", keyspace.PROJECT)),
}
KINDS = (keyspace.PLAN, keyspace.TIER, keyspace.PROJECT, keyspace.TENANT, keyspace.APIKEY, keyspace.ADMIN_KEY)


def members(key: str, fields: Mapping[str, str]) -> set[str]:
    """What the index holds of a record."""
    if not fields:
        return set()
    found = {key}
    for prefix, parents in _PARENTS.items():
        for field, kind in parents if key.startswith(prefix) else ():
            named = {value for name, value in fields.items() if schedule.sets(name) == field and value}
            found |= {f"of:{kind}{parent}>{key}" for parent in named}
    return found


def moves(key: str, raw: RawHash, known: Mapping[str, str] | None, after: RawHash) -> list[Command]:
    """The commands that take a record's index from what was read, or known, to what it shall be."""
    if not key.startswith(KINDS):
        return []
    wanted = members(key, _parent_fields(after))
    gone = sorted((members(key, _parent_fields(raw)) | members(key, known or {})) - wanted)
    add: list[Command] = [("ZADD", keyspace.INDEX, *_scored(wanted))] if wanted else []
    return add + ([("ZREM", keyspace.INDEX, *gone)] if gone else [])


def put(keys: Sequence[str], raws: Sequence[RawHash]) -> list[Command]:
    """The commands that put records in."""
    wanted = [m for key, raw in zip(keys, raws, strict=True) for m in sorted(members(key, _parent_fields(raw)))]
    return [("ZADD", keyspace.INDEX, *_scored(wanted))] if wanted else []


async def beginning(
    store: TenantStore, prefix: str, *, after: str = "", limit: int | None = None
) -> tuple[list[str], int]:
    """Members that begin with a prefix, in their order, and how many more there are behind them.

    Args:
        after: only those behind this one.
        limit: most of them.
    """
    await _complete(store)
    start, last = prefix.encode("utf-8", "replace"), b"(" + prefix.encode("utf-8", "replace") + b"\xff"
    behind = after.encode("utf-8", "replace")
    page = ("LIMIT", 0, limit) if limit is not None else ()
    found = await store.execute(
        "ZRANGE", keyspace.INDEX, b"(" + behind if behind > start else b"[" + start, last, "BYLEX", *page
    )
    whole = limit is None or len(found) < limit
    left = 0 if whole else int(await store.execute("ZLEXCOUNT", keyspace.INDEX, b"(" + found[-1], last))
    return [member.decode("utf-8", "backslashreplace") for member in found], left


async def belonging(store: TenantStore, parent: str) -> list[str]:
    """The keys of the records that belong to a tier's or a tenant's."""
    prefix = f"of:{parent}>"
    return [member.removeprefix(prefix) for member in (await beginning(store, prefix))[0]]


async def _complete(store: TenantStore) -> None:
    """Put every record of a store that has no index yet into one, once."""
    if await store.execute("ZSCORE", keyspace.INDEX, COMPLETE) is not None:
        return
    for kind in KINDS:
        fields = [field for field, _ in _PARENTS.get(kind, ())]
        keys = sorted({key async for key in store.scan(kind)})
        for start in range(0, len(keys), READ_BATCH):
            page = keys[start : start + READ_BATCH]
            asked = [("HMGET", key, *fields) for key in page] if fields else []
            answers = await store.pipeline(asked) if asked else [None] * len(page)
            for command in put(page, [_row(fields, answer) for answer in answers]):
                await store.execute(*command)
    await store.execute("ZADD", keyspace.INDEX, 0, COMPLETE)


def _row(fields: Sequence[str], answer: Any) -> RawHash:
    values = answer if isinstance(answer, list) else []
    return {field.encode(): value for field, value in zip(fields, values, strict=False) if value} or {b"-": b""}


def _parent_fields(raw: RawHash) -> dict[str, str]:
    return {n.decode("utf-8", "backslashreplace"): v.decode("utf-8", "backslashreplace") for n, v in raw.items()}


def _scored(names: Iterable[str]) -> tuple[Any, ...]:
    return tuple(part for name in sorted(names) for part in (0, name))
