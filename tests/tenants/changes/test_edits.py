"""A change of a record: whole, audited, and never over somebody else's."""

from __future__ import annotations

import asyncio

import pytest

from tenants.admin.admin import TenantAdmin
from tenants.changes import edits
from tenants.changes.audit import AuditLog, Entry
from tenants.changes.edits import Conflict, Edit, Found
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend


async def test_an_edit_starts_over_when_another_client_writes_first(
    store: TenantStore, shared_backend: Backend
) -> None:
    async with await TenantStore.connect(shared_backend.url, timeout_s=5.0) as other:

        def more(found: Found) -> Edit:
            after, commands = edits.changed(found, {"v": str(int(found.raw.get(b"v", b"0")) + 1)})
            return Edit(after, commands, Entry("add", "n"))

        for _ in range(10):
            await asyncio.gather(*(edits.edit(s, AuditLog(s, "t"), "n", more) for s in (store, other)))
    assert await store.execute("HGET", "n", "v") == b"20"
    log = AuditLog(store)
    entries = await log.read(100)
    assert [entry["changes"]["v"][1] for entry in reversed(entries)] == [str(n + 1) for n in range(20)]
    assert (await log.verify())["broken"] == []


async def test_of_two_who_read_the_same_record_the_second_is_told(admin: TenantAdmin) -> None:
    await admin.create_tier("gold", {"utility": "1.0"})
    read = (await admin.found("tier:gold")).version
    await admin.set_tier("gold", {"rpm": "5"}, expect=read)
    for late in (
        admin.set_tier("gold", {"rpm": "6"}, expect=read),
        admin.delete_tier("gold", expect=read),
        admin.create_tier("gold", {"utility": "0.1"}),
    ):
        with pytest.raises(Conflict):
            await late
    assert (await admin.tier("gold")).terms.rpm == 5
