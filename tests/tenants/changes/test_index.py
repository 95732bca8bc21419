"""Lists without scans, and what belongs to whom."""

from __future__ import annotations

import json

import pytest

from tenants.admin.admin import TenantAdmin
from tenants.changes import index
from tenants.changes.edits import AdminError
from tenants.records import keyspace
from tenants.records.schema import RecordError
from tenants.store.store import TenantStore
from tests.tenants.conftest import Run, populate, prepare


async def test_lists_and_completion_scan_nothing(
    admin: TenantAdmin, store: TenantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = await populate(admin)
    await admin.names(keyspace.TENANT)  # the first builds the index of an older store

    def scanned(*_: object) -> None:
        raise AssertionError("the keyspace was scanned")

    monkeypatch.setattr(store, "scan", scanned)
    assert await admin.names(keyspace.TENANT, "ac") == ["acme"] and await admin.names(keyspace.TENANT, "b") == []
    assert set(await admin.tenants()) == {"acme"} and set(await admin.tiers()) == {"silver"}
    (own,) = (await admin.keys("acme")).values()
    assert not isinstance(own, RecordError)
    for reference in (own.id, own.prefix, secret):
        assert (await admin.find_key(reference)).id == own.id


async def test_a_store_without_an_index_gets_one(admin: TenantAdmin, store: TenantStore) -> None:
    await populate(admin)
    for i in range(1200):
        await store.execute("HSET", f"tenant:t{i:04}", "tier", "silver")
    await store.execute("DEL", keyspace.INDEX)
    ids, left = await admin.page(keyspace.TENANT, after="acme", limit=3)
    assert (ids, left) == (["t0000", "t0001", "t0002"], 1197)
    assert len(await index.belonging(store, "tier:silver")) == 1201 and len(await admin.keys("acme")) == 1


async def test_who_belongs_to_whom_follows_every_change(admin: TenantAdmin, store: TenantStore) -> None:
    await populate(admin)
    await admin.create_tier("gold", {"utility": "1.0"})
    await admin.set_tenant("acme", {"tier": "gold"})
    assert await index.belonging(store, "tier:gold") == ["tenant:acme"]
    assert await index.belonging(store, "tier:silver") == []
    await admin.delete_tenant("acme")
    await admin.delete_tier("gold")
    left = await store.execute("ZRANGE", keyspace.INDEX, 0, -1)
    assert {m for m in left if not m.startswith(b"~")} == {b"tier:silver"}


@pytest.mark.parametrize("break_it", [("rpm", "many"), ("tenant", "not a name"), ("tenant", "other"), ("odd", "1")])
async def test_a_broken_key_is_listed_and_can_be_revoked(
    tenants: Run, invoke: Run, store: TenantStore, break_it: tuple[str, str]
) -> None:
    await prepare(tenants)
    key = json.loads(await tenants("key", "create", "acme", "--json"))
    record = keyspace.apikey(keyspace.key_digest(key["key"]))
    await store.execute("HSET", record, *break_it)
    assert key["id"] in await tenants("key", "list", "acme")
    (shown,) = json.loads(await tenants("key", "list", "acme", "--json"))
    assert (shown["id"], shown["status"], shown["invalid"]["field"]) == (key["id"], "invalid", break_it[0])
    await tenants("key", "revoke", key["id"])
    assert await store.execute("HGET", record, "status") == b"revoked"


async def test_a_key_that_is_no_hash_is_revoked_by_its_end(tenants: Run, store: TenantStore) -> None:
    await prepare(tenants)
    key = json.loads(await tenants("key", "create", "acme", "--json"))
    record = keyspace.apikey(keyspace.key_digest(key["key"]))
    await store.execute("SET", record, "x")
    assert "deleted" in await tenants("key", "revoke", key["id"])
    assert not await store.execute("EXISTS", record)


async def test_a_key_that_was_written_by_hand_is_found_by_its_id(admin: TenantAdmin, store: TenantStore) -> None:
    await populate(admin)
    await admin.names(keyspace.APIKEY)
    digest = keyspace.key_digest("by hand")
    await store.execute("HSET", keyspace.apikey(digest), "tenant", "acme", "prefix", "sk-acme-…hand")
    assert (await admin.find_key(digest[:12])).digest == (await admin.find_key("sk-acme-…hand")).digest == digest
    with pytest.raises(AdminError, match="no such key"):
        await admin.find_key("f" * 12)
