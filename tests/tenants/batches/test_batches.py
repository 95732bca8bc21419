"""Batches and files in the store, with the rights that gateways and administration have there and no others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from policies.errors import LimitExceeded, NotFound
from tenants.admin import installation
from tenants.admin.admin import TenantAdmin
from tenants.batches.batches import GONE, HELD, Asked, Batches
from tenants.batches.files import PART_BYTES, Files, Space
from tenants.records import keyspace
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore

KEEP_S = 3600


@pytest.fixture
def server(tmp_path: Path) -> EmbeddedValkey:
    return EmbeddedValkey(tmp_path / "store")


@pytest_asyncio.fixture
async def gateway(server: EmbeddedValkey) -> AsyncIterator[TenantStore]:
    async with await TenantStore.connect(server.url_of("gateway"), timeout_s=5.0) as store:
        yield store
    server.stop()


def asked(number: int, tenant: str = "acme") -> Asked:
    made = int(time.time()) + number
    return Asked(f"batch_{number}", tenant, "d", "/v1/completions", "file-1", "24h", made, made + 86_400, KEEP_S)


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for one in data:
        yield one


async def test_one_gateway_has_a_batch_until_its_lease_runs_out(gateway: TenantStore) -> None:
    batches, one = Batches(gateway), asked(1)
    await batches.create(one, most_open=2, keep_s=KEEP_S)
    assert [(tenant, name) for tenant, name, _ in await batches.open()] == [("acme", one.id)]
    assert await batches.claim("acme", one.id, "a", 0.2) == "validating"
    assert await batches.claim("acme", one.id, "b", 5.0) == HELD
    assert await batches.move(one, "a", "in_progress", fields={"total": 2})
    assert await batches.record(one, "a", 1, b"+first", failed=False, keep_s=KEEP_S) == "in_progress"
    await asyncio.sleep(0.25)
    assert await batches.claim("acme", one.id, "b", 5.0) == "in_progress"
    # What the first has still to say is not heard any more.
    assert await batches.record(one, "a", 2, b"+late", failed=False, keep_s=KEEP_S) == GONE
    assert not await batches.move(one, "a", "finalizing")
    for text in (b"-other", b"-another"):
        assert await batches.record(one, "b", 2, text, failed=True, keep_s=KEEP_S) == "in_progress"
    assert await batches.record(one, "b", 1, b"+again", failed=False, keep_s=KEEP_S) == "in_progress"
    assert await batches.done(one) == {1, 2}
    assert await batches.results(one, [1, 2, 3]) == [b"+first", b"-other", None]
    now = await batches.get("acme", one.id)
    assert (now.completed, now.failed, now.total, now.size) == (1, 1, 2, len(b"+first-other"))
    assert await batches.move(one, "b", "completed")
    assert await batches.claim("acme", one.id, "c", 5.0) == GONE and await batches.open() == []
    assert await batches.done(one) == set() and (await batches.get("acme", one.id)).ended
    assert await gateway.execute("EXISTS", keyspace.batch("acme", one.id)) == 1


async def test_a_batch_that_is_given_back_is_anothers_at_once(gateway: TenantStore) -> None:
    batches, one = Batches(gateway), asked(1)
    await batches.create(one, most_open=2, keep_s=KEEP_S)
    assert await batches.claim("acme", one.id, "a", 60.0) == "validating"
    await batches.claim("acme", one.id, "a", 0.0)
    assert await batches.claim("acme", one.id, "b", 60.0) == "validating"


async def test_only_what_has_not_ended_counts_and_the_oldest_make_room(
    gateway: TenantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenants.batches.batches.MOST_KEPT", 3)
    batches = Batches(gateway)
    for number in range(5):
        await batches.create(asked(number), most_open=2, keep_s=KEEP_S)
        if number:  # the first stays open
            await batches.claim("acme", f"batch_{number}", "a", 5.0)
            await batches.move(asked(number), "a", "failed")
    assert [batch.asked.id for batch in await batches.all("acme")] == ["batch_4", "batch_3", "batch_0"]
    await batches.create(asked(7), most_open=2, keep_s=KEEP_S)
    with pytest.raises(LimitExceeded, match="2 batches"):
        await batches.create(asked(8), most_open=2, keep_s=KEEP_S)
    assert {name for _, name, _ in await batches.open()} == {"batch_0", "batch_7"}
    with pytest.raises(NotFound):
        await batches.get("other", "batch_0")
    with pytest.raises(NotFound):
        await batches.get("acme", "batch_0:results")


async def test_cancelling_is_a_word_to_whoever_has_it(gateway: TenantStore) -> None:
    batches, one = Batches(gateway), asked(1)
    await batches.create(one, most_open=2, keep_s=KEEP_S)
    await batches.claim("acme", one.id, "a", 5.0)
    assert (await batches.cancel("acme", one.id)).status == "cancelling"
    assert await batches.claim("acme", one.id, "a", 5.0) == "cancelling"
    assert not await batches.move(one, "a", "in_progress", before="validating")
    assert await batches.move(one, "a", "cancelled")
    assert (await batches.cancel("acme", one.id)).status == "cancelled"


async def test_files_come_back_as_they_went_and_are_counted(gateway: TenantStore) -> None:
    files, space = Files(gateway), Space(3, 4 * PART_BYTES, 5 * PART_BYTES)
    data = bytes(range(256)) * 4100
    file = await files.put("acme", "a", "batch", pieces(data[:10], data[10:]), keep_s=KEEP_S)
    assert file.bytes == len(data) and b"".join([part async for part in files.read("acme", file)]) == data
    other = await files.put("other", "b", "batch", pieces(b"x" * PART_BYTES), keep_s=KEEP_S)
    assert await files.left("acme", space) == 4 * PART_BYTES - len(data)
    assert await files.left("other", Space(3, 9 * PART_BYTES, 5 * PART_BYTES)) == 4 * PART_BYTES - len(data)
    with pytest.raises(NotFound):
        await files.get("other", file.id)
    await files.delete("acme", file.id)
    assert await gateway.execute("EXISTS", keyspace.file_part("acme", file.id, 0)) == 0
    assert [found.id for found in await files.all("other")] == [other.id]
    # Written again under its id it is one file.
    for text in (b"one", b"other"):
        await files.put("acme", "c", "batch_output", pieces(text), keep_s=KEEP_S, file_id="file-c")
    assert [found.bytes for found in await files.all("acme")] == [5]


async def test_what_has_expired_is_not_there_and_not_counted(gateway: TenantStore) -> None:
    files = Files(gateway)
    file = await files.put("acme", "a", "batch", pieces(b"x"), keep_s=1)
    await asyncio.sleep(1.1)
    with pytest.raises(NotFound):
        await files.get("acme", file.id)
    await files.sweep()
    assert await gateway.execute("HGETALL", keyspace.FILE_BYTES) in ([], {})


async def test_a_deleted_tenants_files_and_batches_go_with_it(server: EmbeddedValkey, gateway: TenantStore) -> None:
    async with await TenantStore.connect(server.url, timeout_s=5.0) as owner:
        await installation.create_secrets(owner)
    async with await TenantStore.connect(server.url_of("admin"), timeout_s=5.0) as store:
        admin = TenantAdmin(store, who="tester")
        await admin.create_tier("gold", {"utility": "1.0"})
        await admin.create_tenant("acme", tier="gold")
        files, batches, one = Files(gateway), Batches(gateway), asked(1)
        file = await files.put("acme", "a", "batch", pieces(b"x"), keep_s=KEEP_S)
        await batches.create(one, most_open=2, keep_s=KEEP_S)
        await batches.claim("acme", one.id, "a", 60.0)
        await admin.delete_tenant("acme")
    assert await files.all("acme") == [] and await batches.all("acme") == []
    for call in (files.get("acme", file.id), batches.get("acme", one.id)):
        with pytest.raises(NotFound):
            await call
    # Its gateway finds out, and has nothing to write to.
    assert await batches.claim("acme", one.id, "a", 60.0) == GONE
    assert not await batches.move(one, "a", "completed")
    assert await gateway.execute("HGETALL", keyspace.FILE_BYTES) in ([], {})
