import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tenants.admission import Admission
from tenants.cache import EntitlementCache
from tenants.cli import app
from tenants.store import TenantStore

Run = Callable[..., Any]


@pytest.fixture
def invoke(store: TenantStore) -> Run:
    """Run the command in a thread, since it has an event loop of its own."""

    async def run(*words: str, url: str | None = None) -> Result:
        environment = {"REDIS_URL": store.url if url is None else url, "COLUMNS": "200"}
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, list(words), env=environment))

    return run


@pytest.fixture
def tenants(invoke: Run) -> Run:
    """Run a command that must succeed; its output."""

    async def run(*words: str) -> str:
        result = await invoke(*words)
        assert result.exit_code == 0, result.output
        return str(result.stdout)

    return run


async def prepare(tenants: Run) -> None:
    await tenants("tier", "create", "gold", "utility=1.0", "weight=4")
    await tenants("tier", "create", "silver", "utility=0.9")
    await tenants("create", "acme", "--tier", "silver", "--name", "Acme")


async def test_a_tenants_life_from_its_tier_to_its_revoked_key(tenants: Run, cache: EntitlementCache) -> None:
    await prepare(tenants)
    key = (await tenants("key", "create", "acme", "--label", "ci", "--expires", "30d")).strip()
    assert key.startswith("sk-acme-") and len(key) >= len("sk-acme-") + 43
    own = await cache.authenticate(key)
    assert (own.name, own.tier.name) == ("Acme", "silver") and own.key_expires_at is not None
    await tenants("set", "acme", "tier=gold", "rpm=600")
    shown = json.loads(await tenants("show", "acme", "--json"))
    assert shown == {"id": "acme", "name": "Acme", "tier": "gold", "status": "active", "rpm": "600"}
    await tenants("set", "acme", "rpm=")
    assert "rpm" not in json.loads(await tenants("show", "acme", "--json"))
    listed = json.loads(await tenants("key", "list", "acme", "--json"))
    assert len(listed) == 1 and (listed[0]["label"], listed[0]["status"]) == ("ci", "active")
    assert key not in await tenants("key", "list", "acme")
    await tenants("key", "revoke", listed[0]["prefix"].replace("…", "..."))
    assert json.loads(await tenants("key", "list", "acme", "--json"))[0]["status"] == "revoked"


@pytest.mark.parametrize("how", ["id", "prefix", "secret"])
async def test_a_key_is_revoked_by_its_id_its_prefix_or_itself(tenants: Run, how: str) -> None:
    await prepare(tenants)
    secret = (await tenants("key", "create", "acme")).strip()
    await tenants("key", "create", "acme")
    keys = {key["prefix"]: key for key in json.loads(await tenants("key", "list", "acme", "--json"))}
    mine = keys[f"sk-acme-…{secret[-4:]}"]
    await tenants("key", "revoke", {**mine, "secret": secret}[how])
    after = {key["id"]: key["status"] for key in json.loads(await tenants("key", "list", "acme", "--json"))}
    assert after.pop(mine["id"]) == "revoked" and list(after.values()) == ["active"]


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


async def test_usage_is_shown_by_day_and_model(tenants: Run, store: TenantStore, cache: EntitlementCache) -> None:
    await prepare(tenants)
    own = await cache.authenticate((await tenants("key", "create", "acme")).strip())
    admission = Admission(store)
    async with admission.admit(own, model="resnet", images=3):
        pass
    await admission.aclose()
    days = json.loads(await tenants("usage", "acme", "--json"))
    assert len(days) == 7 and days[0]["by_model"]["resnet"]["images"] == 3
    assert "resnet" in await tenants("usage", "acme")
    assert "resnet" in await tenants("usage", "acme", "--month", days[0]["period"][:7])


async def test_every_change_is_in_the_audit_trail_without_secrets(tenants: Run) -> None:
    await prepare(tenants)
    key = (await tenants("key", "create", "acme")).strip()
    await tenants("focus", "acme", "m", "sky=0.5")
    await tenants("key", "revoke", key)
    entries = json.loads(await tenants("audit", "--json"))
    actions = ["key revoke", "tenant set", "key create", "tenant create", "tier create", "tier create"]
    assert [entry["action"] for entry in entries] == actions
    assert all(entry["who"] and entry["time"].endswith("Z") for entry in entries)
    assert json.loads(entries[1]["detail"]) == {"focus:m:sky": "0.5"}
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "nobody"], "no tenant 'nobody'"),
        (["suspend", "nobody"], "no tenant 'nobody'"),
        (["usage", "nobody"], "no tenant 'nobody'"),
        (["key", "create", "nobody"], "no tenant 'nobody'"),
        (["key", "list", "nobody"], "no tenant 'nobody'"),
        (["focus", "nobody", "m", "sky=0.5"], "no tenant 'nobody'"),
        (["focus", "acme", "m", "sky=1"], "'sky' must lie strictly between -1 and 1"),
        (["focus", "acme", "m", "sky=nan"], "'sky' must lie strictly between -1 and 1"),
        (["focus", "acme", "m", "sky=much"], "'sky' must be a number"),
        (["focus", "acme", "m:n", "sky=0.1"], "'m:n' is not a model id"),
        (["create", "acme", "--tier", "silver"], "already is a tenant 'acme'"),
        (["create", "new", "--tier", "platinum"], "no tier 'platinum'"),
        (["create", "a b", "--tier", "silver"], "'a b' is not a tenant's name"),
        (["set", "acme", "tier=platinum"], "no tier 'platinum'"),
        (["set", "acme", "tier="], "tenant:acme tier: "),
        (["set", "acme", "rpm"], "expected FIELD=VALUE, not 'rpm'"),
        (["set", "acme", "rpm=many"], "tenant:acme rpm: "),
        (["set", "acme", "rpn=5"], "tenant:acme rpn: is not a field"),
        (["set", "acme", "status=asleep"], "tenant:acme status: "),
        (["tier", "set", "silver", "utility=2"], "tier:silver utility: "),
        (["tier", "set", "silver", "utility="], "tier:silver utility: is missing"),
        (["tier", "create", "new", "rpm=5"], "tier:new utility: is missing"),
        (["tier", "create", "silver", "utility=1"], "already is a tier 'silver'"),
        (["tier", "show", "platinum"], "no tier 'platinum'"),
        (["key", "create", "acme", "--expires", "soon"], "not 'soon'"),
        (["key", "create", "acme", "--expires", "2001-01-01"], "in the past"),
        (["key", "revoke", "sk-acme-...none"], "no such key"),
        (["key", "revoke", ""], "no such key"),
        (["usage", "acme", "--month", "May"], "--month"),
    ],
)
async def test_a_mistake_is_one_line_that_names_it_and_changes_nothing(
    invoke: Run, tenants: Run, words: list[str], said: str
) -> None:
    await prepare(tenants)
    before = await tenants("list", "--json") + await tenants("tier", "list", "--json")
    result = await invoke(*words)
    assert result.exit_code == 1
    assert said in result.stderr and len(result.stderr.splitlines()) == 1 and result.stdout == ""
    assert await tenants("list", "--json") + await tenants("tier", "list", "--json") == before


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://:hunter2@127.0.0.1:1/0", "store is away"),
        ("http://:hunter2@x", "must begin with"),
        ("", "REDIS_URL"),
    ],
)
async def test_without_a_store_one_line_says_what_to_do_and_no_secret(
    invoke: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.DEBUG):
        result = await invoke("list", url=url)
    assert result.exit_code == 1 and said in result.stderr and len(result.stderr.splitlines()) == 1
    assert "hunter2" not in result.output + caplog.text


async def test_the_demo_file_of_the_working_folder_names_the_store(store: TenantStore, tmp_path: Path) -> None:
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "demo.env").write_text(f"REDIS_URL='{store.url}'\n")
    command = [sys.executable, "-m", "tenants.cli", "check"]
    path = str(Path(__file__).parents[2])
    run = await asyncio.to_thread(
        subprocess.run, command, cwd=tmp_path, env={"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "All records are valid.\n", "")
