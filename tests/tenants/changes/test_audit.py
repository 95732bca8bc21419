"""The audit log: who did what, from which value to which, in a chain that shows what was taken out of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tenants.admin.admin import TenantAdmin
from tenants.changes.audit import AuditLog, Entry
from tenants.records import keyspace
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend, Run, populate, prepare


async def newest(admin: TenantAdmin) -> dict[str, Any]:
    return (await admin.log.read(1))[0]


async def test_who_is_the_stores_user_and_no_variable_of_the_shell(
    tenants: Run, admin: TenantAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    await tenants("tier", "create", "gold", "utility=1.0")
    entry = await newest(admin)
    assert entry["who"] == "default" and "somebody-else" not in json.dumps(entry) and "command of" in entry["via"]


async def test_old_and_new_values_are_kept_of_every_kind_of_change(admin: TenantAdmin) -> None:
    secret = await populate(admin, rpm="5")
    await admin.set_tenant("acme", {"rpm": "9", "tpm": "7"})
    assert (await newest(admin))["changes"] == {"rpm": ["5", "9"], "tpm": [None, "7"]}
    await admin.set_tenant("acme", {"rpm": None})
    assert (await newest(admin))["changes"] == {"rpm": ["9", None]}
    await admin.set_tier("silver", {"utility": "0.8"})
    assert (await newest(admin))["changes"] == {"utility": ["0.9", "0.8"]}
    await admin.revoke_key(secret)
    assert (await newest(admin))["changes"] == {"status": ["active", "revoked"]}
    await admin.delete_tenant("acme")
    assert (await newest(admin))["changes"]["tpm"] == ["7", None]


@pytest.mark.parametrize("forged", ["a line changed", "a line taken out", "a line put in"])
async def test_a_line_that_was_tampered_with_is_found(admin: TenantAdmin, store: TenantStore, forged: str) -> None:
    await populate(admin)
    before = await admin.log.verify()
    assert (before["entries"], before["broken"], before["first"]) == (3, [], "0" * 64)
    line = (await store.execute("LINDEX", keyspace.AUDIT, 1)).decode()
    match forged:
        case "a line changed":
            await store.execute("LSET", keyspace.AUDIT, 1, line.replace("tester", "nobody"))
        case "a line taken out":
            await store.execute("LREM", keyspace.AUDIT, 1, line)
        case _:
            await store.execute("LINSERT", keyspace.AUDIT, "AFTER", line, line)
    assert (await admin.log.verify())["broken"]
    await store.execute("RPUSH", keyspace.AUDIT, b"\xff no entry")
    assert (await admin.log.read(1))[0]["action"] == "not an entry"


async def test_the_end_cut_off_shows_in_the_head(tenants: Run, invoke: Run, store: TenantStore) -> None:
    await prepare(tenants)
    head = json.loads(await tenants("audit", "--verify", "--json"))["head"]
    await store.execute("RPOP", keyspace.AUDIT)
    after = json.loads(await tenants("audit", "--verify", "--json"))
    assert after["head"] != head and after["entries"] == 2
    await store.execute("LREM", keyspace.AUDIT, 1, await store.execute("LINDEX", keyspace.AUDIT, 0))
    assert "taken" not in (await invoke("audit", "--verify")).stderr
    assert json.loads(await tenants("audit", "--verify", "--json"))["first"] != "0" * 64


async def test_many_who_change_at_once_make_one_chain(store: TenantStore, shared_backend: Backend) -> None:
    async with await TenantStore.connect(shared_backend.url, timeout_s=5.0) as other:
        admins = [TenantAdmin(s, who=who) for s, who in ((store, "a"), (other, "b"))]
        await asyncio.gather(
            *(admins[i % 2].create_tier(f"t{i}", {"utility": "0.5"}) for i in range(20)),
            *(AuditLog(s, "c").append(Entry("note", "x")) for s in (store, other)),
        )
    found = await AuditLog(store).verify()
    assert (found["entries"], found["broken"]) == (22, [])


async def test_an_edit_by_hand_is_entered_with_what_it_changed(
    admin: TenantAdmin, store: TenantStore, tenants: Run
) -> None:
    secret = await populate(admin, rpm="5")
    await store.execute("HSET", "tenant:acme", "rpm", "500", "tier", "silver")
    await admin.set_tenant("acme", {"tpm": "7"})
    ours, theirs = await admin.log.read(2)
    assert (theirs["who"], theirs["action"], theirs["subject"]) == ("(by hand)", "tenant changed", "acme")
    assert theirs["changes"] == {"rpm": ["5", "500"]} and ours["changes"] == {"tpm": [None, "7"]}

    await store.execute("HSET", "tier:mine", "utility", "1.0")
    await store.execute("HDEL", f"apikey:{keyspace.key_digest(secret)}", "status")
    await store.execute("DEL", "tenant:acme")
    assert "mine" not in await tenants("tier", "list")
    await admin.check()
    entries = {entry["action"]: entry for entry in await admin.log.read(3)}
    assert {entry["who"] for entry in entries.values()} == {"(by hand)"}
    assert entries["tier created"]["changes"] == {"utility": [None, "1.0"]}
    assert entries["apikey changed"]["changes"] == {"status": ["active", None]}
    assert entries["tenant deleted"]["changes"]["rpm"] == ["500", None]
    assert "mine" in await tenants("tier", "list") and "acme" not in await tenants("list")
    assert await admin.enter_edits_by_hand() == 0


async def test_records_of_before_this_log_are_not_called_edits_by_hand(store: TenantStore, admin: TenantAdmin) -> None:
    await store.execute("HSET", "tier:old", "utility", "1.0", "sealed", "utility")
    await admin.set_tier("old", {"rpm": "1"})
    assert [entry["action"] for entry in await admin.log.read()] == ["tier set"]
    await store.execute("XADD", keyspace.AUDIT_BEFORE, "1-0", "who", "root", "action", "tier create", "detail", "{}")
    assert (await admin.log.read())[-1]["who"] == "root"


async def test_a_key_that_somebody_pasted_into_a_field_is_not_in_the_log(
    admin: TenantAdmin, store: TenantStore
) -> None:
    secret = await populate(admin)
    await admin.set_tenant("acme", {"name": f"the key is {secret}!"})
    assert secret not in json.dumps(await admin.log.read())
    assert f"…{secret[-3:]}!" in (await newest(admin))["changes"]["name"][1]
    assert secret.encode() not in await store.execute("GET", keyspace.known("tenant:acme"))
