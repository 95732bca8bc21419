import asyncio
import csv
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tenants import keyspace
from tenants.admission import Admission
from tenants.cache import EntitlementCache
from tenants.cli import app
from tenants.records import LimitFields
from tenants.store import TenantStore
from tests.tenants.conftest import until
from tests.tenants.test_cache import refused

REPOSITORY = str(Path(__file__).parents[2])
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


async def test_usage_between_two_days_is_a_table_csv_and_json(tenants: Run, store: TenantStore) -> None:
    await prepare(tenants)
    for day, model, requests in (
        ("2030-01-30", "a", 1),
        ("2030-01-31", "a", 2),
        ("2030-01-31", "b", 3),
        ("2030-02-01", "a", 9),
    ):
        key = keyspace.usage_period("acme", day)
        await store.execute("HINCRBY", key, "requests", requests)
        await store.execute("HINCRBY", key, f"requests:{model}", requests)
    span = ("usage", "acme", "--from", "2030-01-29", "--to", "2030-01-31")
    days = json.loads(await tenants(*span, "--json"))
    assert [(day["period"], day["total"]["requests"]) for day in days] == [
        ("2030-01-31", 5),
        ("2030-01-30", 1),
        ("2030-01-29", 0),
    ]
    rows = list(csv.DictReader((await tenants(*span, "--csv")).splitlines()))
    assert [(row["period"], row["model"], row["requests"]) for row in rows] == [
        ("2030-01-31", "a", "2"),
        ("2030-01-31", "b", "3"),
        ("2030-01-30", "a", "1"),
    ]
    table = await tenants(*span)
    assert "2030-01-31" in table and "2030-02-01" not in table and "2030-01-29" not in table


async def test_a_rotated_key_and_its_successor_both_work_until_the_overlap_ends(
    tenants: Run, cache: EntitlementCache
) -> None:
    await prepare(tenants)
    created = await tenants(
        "key", "create", "acme", "--label", "ci", "--scopes", "model:m", "--limit", "rpm=60", "--json"
    )
    old = json.loads(created)["key"]
    new = json.loads(await tenants("key", "rotate", old, "--overlap", "1h", "--json"))
    before, after = await cache.authenticate(old), await cache.authenticate(new["key"])
    assert before.key_expires_at is not None and after.key_expires_at is None
    assert (
        (after.scopes, after.key_limits)
        == (before.scopes, before.key_limits)
        == (
            frozenset({"model:m"}),
            LimitFields(rpm=60),
        )
    )
    assert after.may_use("m") and not after.may_use("n") and after.may_infer()
    third = (await tenants("key", "rotate", new["id"], "--overlap", "0s")).strip()
    await until(lambda: refused(cache, new["key"], "invalid_api_key"))
    assert (await cache.authenticate(third)).key_limits == LimitFields(rpm=60)
    assert [key["status"] for key in json.loads(await tenants("key", "list", "acme", "--json"))].count("expired") == 1


async def test_a_keys_terms_are_changed(tenants: Run, cache: EntitlementCache) -> None:
    await prepare(tenants)
    key = (await tenants("key", "create", "acme")).strip()
    await tenants("key", "set", key, "rpm=7", "scopes=entitlements")
    own = await cache.authenticate(key)
    assert own.key_limits == LimitFields(rpm=7) and not own.may_infer() and own.may_use("m")
    assert "rpm=7" in await tenants("key", "list", "acme")


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
        command = [sys.executable, "-m", "tenants.cli"]
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
        (["usage", "acme", "--month", "May"], "--month must look like 2030-01, not May"),
        (["usage", "acme", "--from", "2030-02-30"], "--from must look like"),
        (["usage", "acme", "--from", "2030-02-02", "--to", "2030-02-01"], "--from must not be after"),
        (["usage", "acme", "--month", "2030-01", "--from", "2030-02-02"], "--month goes without"),
        (["key", "create", "acme", "--scopes", "admin"], "tenants: scopes: expected inference"),
        (["key", "create", "acme", "--limit", "rpm=x"], "tenants: rpm: "),
        (["key", "rotate", "sk-acme-...none"], "no such key"),
        (["key", "rotate", "sk-acme-...none", "--overlap", "soon"], "--overlap takes"),
        (["key", "set", "sk-acme-...none", "tenant=x"], "'tenant' of a key cannot be set"),
        (["delete", "nobody", "--yes"], "no tenant 'nobody'"),
        (["tier", "delete", "silver", "--yes"], "has 1 tenants, such as 'acme'"),
        (["tier", "delete", "platinum", "--yes"], "no tier 'platinum'"),
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
        ("redis://:hunter2@127.0.0.1:1/0", "nothing listens there"),
        ("redis+sentinel://:hunter2@127.0.0.1:1/main", "no Sentinel answers"),
        ("redis+cluster://:hunter2@127.0.0.1:1", "nothing listens there"),
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


EVERY_COMMAND = [
    ["list"],
    ["show", "acme"],
    ["create", "acme", "--tier", "gold"],
    ["set", "acme", "rpm=1"],
    ["focus", "acme", "m", "sky=0.5"],
    ["suspend", "acme"],
    ["activate", "acme"],
    ["delete", "acme", "--yes"],
    ["usage", "acme"],
    ["audit"],
    ["check"],
    ["export"],
    ["apply", "/dev/null", "--prune", "--yes"],
    ["tier", "list"],
    ["tier", "show", "gold"],
    ["tier", "create", "gold", "utility=1"],
    ["tier", "set", "gold", "rpm=1"],
    ["tier", "delete", "gold", "--yes"],
    ["key", "create", "acme"],
    ["key", "list", "acme"],
    ["key", "set", "sk-acme-...abcd", "rpm=1"],
    ["key", "rotate", "sk-acme-...abcd"],
    ["key", "revoke", "sk-acme-...abcd"],
]


def test_with_the_store_away_every_command_prints_one_line_and_no_log() -> None:
    """In a process of its own, as a shell sees it: pytest takes the log's lines away."""
    code = (
        "import sys; from typer.testing import CliRunner; from tenants.cli import app\n"
        f"for words in {EVERY_COMMAND!r}:\n"
        "    result = CliRunner().invoke(app, words)\n"
        "    print(result.exit_code, len(result.output.splitlines()), result.output.strip())\n"
    )
    environment = {"REDIS_URL": "redis://:hunter2@127.0.0.1:1/0", "PYTHONPATH": REPOSITORY}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    said = "tenants: the store at redis://127.0.0.1:1/0 is not reached: nothing listens there."
    assert run.stderr == ""
    assert run.stdout.splitlines() == [f"1 1 {said}"] * len(EVERY_COMMAND)


async def test_the_demo_file_of_the_working_folder_names_the_store(store: TenantStore, tmp_path: Path) -> None:
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "demo.env").write_text(f"REDIS_URL='{store.url}'\n")
    command = [sys.executable, "-m", "tenants.cli", "check"]
    run = await asyncio.to_thread(
        subprocess.run, command, cwd=tmp_path, env={"PYTHONPATH": REPOSITORY}, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "All records are valid.\n", "")


async def test_no_rights_stay_none_over_create_rotate_apply_and_delete(
    tenants: Run, store: TenantStore, tmp_path: Path
) -> None:
    await prepare(tenants)
    old = (await tenants("key", "create", "acme", "--scopes", ",")).strip()
    new = (await tenants("key", "rotate", old)).strip()
    digests = [keyspace.key_digest(key) for key in (old, new)]
    assert [await store.execute("HGET", keyspace.apikey(digest), "scopes") for digest in digests] == [b"", b""]

    file = tmp_path / "tenants.yaml"
    file.write_text("tiers: {none: {utility: 0.5, models: []}}\ntenants: {acme: {tier: none, focus_allow: []}}\n")
    await tenants("apply", str(file), "--yes")
    assert await store.execute("HGET", "tier:none", "models") == b""
    assert await store.execute("HGET", "tenant:acme", "focus_allow") == b""
    assert "Nothing to change" in await tenants("apply", str(file), "--yes")
    file.write_text(await tenants("export"))
    assert "Nothing to change" in await tenants("apply", str(file), "--yes")

    await store.execute("HSET", keyspace.apikey(digests[0]), "status", "odd")  # a record that does not validate
    await tenants("delete", "acme", "--yes")
    assert [await store.execute("EXISTS", keyspace.apikey(digest)) for digest in digests] == [0, 0]
