"""The installation's secrets: made once by an explicit step, never drawn anew beside what another one keyed."""

import asyncio
import json
from typing import Any

import pytest

from tenants.admin import installation
from tenants.changes.edits import AdminError
from tenants.records import keyspace
from tenants.records.schema import RecordError
from tenants.reports.replicas import ReplicaReport, ServedModels
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend, Run

SECRET = b"a noise secret of an installation"


async def test_init_makes_both_secrets_once_and_shows_neither(store: TenantStore, invoke: Run) -> None:
    first = await invoke("init")
    assert first.exit_code == 0
    assert first.stdout.splitlines() == [
        "Created the noise secret (secret:noise): back it up.",
        "Created the receipts' secret (secret:receipts): back it up.",
    ]
    made = await installation.noise_secret(store), await installation.receipt_secret(store)
    assert len(bytes.fromhex(made[0])) == 32 and len(made[1]) == 43
    again = await invoke("init", "--json")
    assert all(line.endswith("is there already.") for line in json.loads(again.stdout))
    assert (await installation.noise_secret(store), await installation.receipt_secret(store)) == made
    audit = (await invoke("audit", "--json")).stdout
    assert [entry["subject"] for entry in json.loads(audit)] == ["secret:receipts", "secret:noise"]
    assert not any(secret in text for secret in made for text in (first.output, again.output, audit))


async def test_of_many_that_make_them_at_once_one_does(store: TenantStore, shared_backend: Backend) -> None:
    async with await TenantStore.connect(shared_backend.url, timeout_s=5.0) as other:
        told = await asyncio.gather(
            *(installation.create_secrets(s, who="t") for s in (store, other) for _ in range(4))
        )
    assert sum(line.startswith("Created") for lines in told for line in lines) == 2


@pytest.mark.parametrize("left", ["calibration:f", "field:f", keyspace.NOISE_SECRET_ID])
async def test_a_lost_secret_is_not_drawn_anew_beside_what_it_keyed(store: TenantStore, invoke: Run, left: str) -> None:
    await store.execute("SET", left, "{}")
    refused = await invoke("init")
    assert refused.exit_code == 1 and len(refused.stderr.splitlines()) == 1
    assert all(word in refused.stderr for word in (left, "Restore it", "--new-secret", "calibrated anew"))
    assert await store.execute("EXISTS", keyspace.NOISE_SECRET, keyspace.RECEIPT_SECRET) == 0

    asked = await invoke("init", "--new-secret")  # nobody answers the question
    assert asked.exit_code == 1 and "average the old noise with the new" in asked.output
    assert await store.execute("EXISTS", keyspace.NOISE_SECRET) == 0
    assert "average the old noise with the new" in (await invoke("init", "--new-secret", "--yes")).stdout
    await installation.noise_secret(store)
    assert not await store.execute("EXISTS", keyspace.NOISE_SECRET_ID)


async def test_a_new_secret_takes_the_old_ones_place_once_no_replica_serves(store: TenantStore, invoke: Run) -> None:
    await invoke("init")
    old = await installation.noise_secret(store)
    await installation.join(store, old.encode())
    await ServedModels(store).publish(ReplicaReport("m", "r", "f", 0, 1))
    refused = await invoke("init", "--new-secret", "--yes")
    assert refused.exit_code == 1 and "end the application" in refused.stderr
    assert await installation.noise_secret(store) == old
    await store.execute("DEL", keyspace.levels("m", "r"))
    assert (await invoke("init", "--new-secret", "--yes")).exit_code == 0
    new = await installation.noise_secret(store)
    assert new != old and await installation.join(store, new.encode()) == installation.secret_id(new.encode())


async def test_a_secret_from_outside_is_not_made_in_the_store(store: TenantStore, invoke: Run) -> None:
    await store.execute("SET", "calibration:f", "{}")
    assert "none" in (await invoke("init", "--noise-secret-outside")).stdout
    assert not await store.execute("EXISTS", keyspace.NOISE_SECRET) and await installation.receipt_secret(store)


async def test_the_environments_secret_is_one_from_outside(
    store: TenantStore, invoke: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIM_NOISE_SECRET", SECRET.decode())
    assert (await invoke("init")).exit_code == 0
    assert not await store.execute("EXISTS", keyspace.NOISE_SECRET)


@pytest.mark.parametrize("read", ["noise_secret", "receipt_secret"])
async def test_a_secret_that_is_missing_or_damaged_is_refused_and_never_replaced(store: TenantStore, read: str) -> None:
    key = {"noise_secret": keyspace.NOISE_SECRET, "receipt_secret": keyspace.RECEIPT_SECRET}[read]
    with pytest.raises(RecordError, match=f"{key}: there is none; create it once by `tenants init`"):
        await getattr(installation, read)(store)
    assert not await store.execute("EXISTS", key)
    await store.execute("SET", key, "short")
    with pytest.raises(RecordError, match=f"{key}: expected") as refused:
        await getattr(installation, read)(store)
    assert "short" not in str(refused.value) and await store.execute("GET", key) == b"short"


async def test_a_replica_with_another_secret_is_refused(store: TenantStore) -> None:
    own = await installation.join(store, SECRET)
    assert own == await installation.join(store, SECRET) and len(own) == 16
    with pytest.raises(RecordError) as refused:
        await installation.join(store, b"another noise secret altogether")
    said = str(refused.value)
    assert own in said and "tenants init --new-secret" in said and "\n" not in said


async def test_of_two_secrets_that_join_at_once_one_serves(store: TenantStore) -> None:
    joined: list[Any] = await asyncio.gather(
        *(installation.join(store, SECRET + bytes([n % 2])) for n in range(8)), return_exceptions=True
    )
    served = {own for own in joined if isinstance(own, str)}
    assert len(served) == 1 and sum(isinstance(own, RecordError) for own in joined) == 4


async def test_check_names_models_that_are_served_with_another_secret(store: TenantStore, invoke: Run) -> None:
    own, served = await installation.join(store, SECRET), ServedModels(store)
    await served.publish(ReplicaReport("m", "r1", "f", 0, 1, noise=own))
    assert (await invoke("check")).exit_code == 0
    await served.publish(ReplicaReport("n", "r2", "f", 0, 1, noise="0123456789abcdef"))
    found = await invoke("check")
    (line,) = found.stdout.splitlines()
    assert found.exit_code == 1 and "n is served with the noise secret of id 0123456789abcdef" in line and own in line


async def test_the_refusal_is_an_admins_mistake(store: TenantStore) -> None:
    await store.execute("SET", "calibration:f", "{}")
    with pytest.raises(AdminError):
        await installation.create_secrets(store)
    assert await installation.create_secrets(store, new=True)
