"""The `tenants` command: tiers, tenants, lists, the audit trail, completion."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tenants.live.cache import EntitlementCache
from tenants.metering.admission import Admission
from tenants.store.store import TenantStore
from tests.tenants.conftest import REPOSITORY, Run, prepare, refused, until


async def test_focus_is_set_shown_and_removed_by_zero(tenants: Run) -> None:
    await prepare(tenants)
    await tenants("focus", "acme", "segformer-b0-camvid", "pedestrian=0.9", "a=b: c=-0.5")
    shown = json.loads(await tenants("show", "acme", "--json"))
    assert (
        shown["focus:segformer-b0-camvid:pedestrian"] == "0.9" and shown["focus:segformer-b0-camvid:a=b: c"] == "-0.5"
    )
    await tenants("focus", "acme", "segformer-b0-camvid", "pedestrian=0")
    assert "pedestrian" not in await tenants("show", "acme")
    assert "a=b: c=-0.5" in await tenants("focus", "acme", "segformer-b0-camvid")


async def test_a_tenant_is_suspended_and_activated(tenants: Run) -> None:
    await prepare(tenants)
    await tenants("suspend", "acme")
    assert "suspended" in await tenants("list")
    await tenants("activate", "acme")
    assert "suspended" not in await tenants("list")


async def test_lists_and_tables_show_what_there_is(tenants: Run, store: TenantStore) -> None:
    assert "Nothing" in await tenants("list")
    await prepare(tenants)
    await tenants("set", "acme", "name=[red]x[/red] \\[")
    assert "[red]x[/red]" in await tenants("list")
    assert "weight" in await tenants("tier", "show", "gold")
    assert {tier["tier"] for tier in json.loads(await tenants("tier", "list", "--json"))} == {"gold", "silver"}
    await store.execute("HSET", "tier:gold", "rpm", "x")
    assert "invalid" in await tenants("tier", "list")
    assert "silver" in await tenants("tier", "list")


async def test_a_long_list_comes_in_pages(tenants: Run, invoke: Run) -> None:
    await prepare(tenants)
    for i in range(5):
        await tenants("create", f"t{i}", "--tier", "silver")
    first = await invoke("list", "--limit", "4", "--json")
    assert [t["id"] for t in json.loads(first.stdout)] == ["acme", "t0", "t1", "t2"]
    assert "2 more: tenants list --after t2" in first.stderr
    rest = await invoke("list", "--limit", "4", "--after", "t2", "--json")
    assert [t["id"] for t in json.loads(rest.stdout)] == ["t3", "t4"] and rest.stderr == ""


async def test_a_deleted_tenant_is_gone_with_its_keys_even_if_its_record_is_broken(
    tenants: Run, invoke: Run, store: TenantStore, cache: EntitlementCache
) -> None:
    await prepare(tenants)
    key = (await tenants("key", "create", "acme")).strip()
    await cache.authenticate(key)
    await store.execute("HSET", "tenant:acme", "rpm", "x")
    assert (await invoke("delete", "acme")).exit_code == 1
    assert "1 keys" in await tenants("delete", "acme", "--yes")
    await until(lambda: refused(cache, key, "invalid_api_key"))
    assert "valid" in await tenants("check")
    await tenants("tier", "delete", "silver", "--yes")
    assert json.loads(await tenants("audit", "--json"))[1]["action"] == "tenant delete"


@pytest.mark.parametrize(
    "words",
    [
        ["tier", "create", "new", "utility=0.5"],
        ["tier", "set", "gold", "rpm=5"],
        ["tier", "delete", "gold", "--yes"],
        ["create", "new", "--tier", "gold"],
        ["set", "acme", "rpm=5"],
        ["focus", "acme", "m", "sky=0.5"],
        ["suspend", "acme"],
        ["activate", "acme"],
        ["delete", "acme", "--yes"],
        ["check"],
        ["list"],
        ["show", "acme"],
        ["usage", "acme"],
        ["audit"],
        ["export"],
        ["key", "create", "acme"],
        ["key", "list", "acme"],
    ],
)
async def test_every_command_speaks_json(tenants: Run, words: list[str]) -> None:
    await prepare(tenants)
    json.loads(await tenants(*words, "--json"))


async def test_the_shell_completes_tenants_and_tiers(store: TenantStore, tenants: Run) -> None:
    await prepare(tenants)
    await tenants("create", "apex", "--tier", "gold")

    async def completed(*words: str) -> list[str]:
        environment = {"REDIS_URL": store.url, "_TENANTS_COMPLETE": "complete_bash", "PYTHONPATH": REPOSITORY}
        environment |= {"COMP_WORDS": " ".join(("tenants", *words)), "COMP_CWORD": str(len(words))}
        command = [sys.executable, "-m", "tenants.command.app"]
        run = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, text=True)
        return run.stdout.split()

    assert await completed("show", "a") == ["acme", "apex"]
    assert await completed("tier", "show", "g") == ["gold"]
    assert "rotate" in await completed("key", "r")


async def test_every_change_is_in_the_audit_trail_without_secrets(tenants: Run) -> None:
    await prepare(tenants)
    key = (await tenants("key", "create", "acme")).strip()
    await tenants("focus", "acme", "m", "sky=0.5")
    await tenants("key", "revoke", key)
    entries = json.loads(await tenants("audit", "--json"))
    actions = ["key revoke", "tenant set", "key create", "tenant create", "tier create", "tier create"]
    assert [entry["action"] for entry in entries] == actions
    assert all(entry["who"] and entry["time"].endswith("Z") for entry in entries)
    assert entries[1]["changes"] == {"focus:m:sky": [None, "0.5"]}
    assert key not in json.dumps(entries)
    assert "tier create" in await tenants("audit")


async def test_check_names_key_and_field_of_everything_that_is_wrong(
    invoke: Run, tenants: Run, store: TenantStore
) -> None:
    await prepare(tenants)
    assert "valid" in await tenants("check")
    await store.execute("HSET", "tier:gold", "utility", "abc")
    await store.execute("HSET", "tenant:acme", "tier", "nowhere")
    await store.execute("HSET", "tenant:\xff", "tier", b"\xff")
    await store.execute("SET", "tier:text", "x")
    await store.execute("HSET", "apikey:" + "0" * 64, "tenant", "gone")
    result = await invoke("check", "--json")
    assert result.exit_code == 1 and {"key", "field", "problem"} == set(json.loads(result.stdout)[0])
    result = await invoke("check")
    lines = result.stdout.splitlines()
    assert result.exit_code == 1 and len(lines) == 5
    for start in (
        "tier:gold utility: ",
        "tenant:acme tier: ",
        "tenant:ÿ tier: ",
        "tier:text: ",
        f"apikey:{'0' * 64} tenant: ",
    ):
        assert any(line.startswith(start) for line in lines), (start, lines)


async def test_the_admins_file_of_the_working_folder_names_the_store(store: TenantStore, tmp_path: Path) -> None:
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "admin.env").write_text(f"REDIS_URL='{store.url}'\n")
    command = [sys.executable, "-m", "tenants.command.app", "check"]
    run = await asyncio.to_thread(
        subprocess.run, command, cwd=tmp_path, env={"PYTHONPATH": REPOSITORY}, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "All records are valid.\n", "")


async def test_a_value_may_hold_the_mark_and_a_class_too(tenants: Run) -> None:
    await prepare(tenants)
    await tenants("set", "acme", "name=R&D = x", "focus:m:a=b=0.5")
    shown = json.loads(await tenants("show", "acme", "--json"))
    assert (shown["name"], shown["focus:m:a=b"]) == ("R&D = x", "0.5")


async def test_a_deleted_tenants_name_does_not_hand_its_usage_on(
    tenants: Run, invoke: Run, store: TenantStore, admission: Admission
) -> None:
    await prepare(tenants)
    key = (await tenants("key", "create", "acme")).strip()
    own = await EntitlementCache(store).authenticate(key)
    async with admission.admit(own, model="m", tokens=5) as lease:
        lease.settle(tokens_in=3, tokens_out=2)
    assert await admission.drain(20.0)
    await tenants("delete", "acme", "--yes")
    refused = await invoke("create", "acme", "--tier", "gold")
    assert refused.exit_code == 1 and "usage is kept" in refused.stderr and "--reuse" in refused.stderr
    await tenants("create", "acme", "--tier", "gold", "--reuse")
    await tenants("create", "other", "--tier", "gold")
    await tenants("delete", "other", "--yes")
    await tenants("create", "other", "--tier", "gold")
