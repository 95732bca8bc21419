"""What the `tenants` command says where something is wrong: one line, no log, no secret."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from tenants.admin.admin import TenantAdmin
from tests.tenants.conftest import REPOSITORY, Run


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
        (["set", "acme", "--remove", "tier"], "tenant:acme tier: "),
        (["set", "acme", "rpm="], "'rpm' is given no value"),
        (["set", "acme", "rpm= "], "'rpm' is given no value"),
        (["set", "acme", "rpm=1", "--remove", "rpm"], "'rpm'"),
        (["set", "acme", "--remove", ""], "--remove takes the name of a field"),
        (["set", "acme"], "give at least one FIELD=VALUE"),
        (["set", "acme", "rpm=1", "rpm=2"], "'rpm' is given twice"),
        (["focus", "acme", "m", "sky="], "'sky' is given no value"),
        (["tier", "set", "silver", "weight="], "'weight' is given no value"),
        (["tier", "create", "new", "utility="], "'utility' is given no value"),
        (["key", "set", "sk-acme-...none", "scopes="], "'scopes' is given no value"),
        (["key", "create", "acme", "--scopes", ""], "--scopes is given no value"),
        (["key", "create", "acme", "--expires", ""], "--expires is given no value"),
        (["key", "create", "acme", "--limit", "rpm="], "'rpm' is given no value"),
        (["key", "create", "acme", "--limit", "scopes=entitlements"], "'scopes' is no limit of a key"),
        (["--redis-url", "", "set", "acme", "rpm=1"], "--redis-url is given no value"),
        (["set", "acme", "rpm"], "expected FIELD=VALUE, not 'rpm'"),
        (["set", "acme", "rpm=many"], "tenant:acme rpm: "),
        (["set", "acme", "rpn=5"], "tenant:acme rpn: is not a field"),
        (["set", "acme", "status=asleep"], "tenant:acme status: "),
        (["tier", "set", "silver", "utility=2"], "tier:silver utility: "),
        (["tier", "set", "silver", "--remove", "utility"], "tier:silver utility: is missing"),
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
    invoke: Run, admin: TenantAdmin, words: list[str], said: str
) -> None:
    await admin.create_tier("silver", {"utility": "0.9"})
    await admin.create_tenant("acme", tier="silver", name="Acme")
    before = [await admin.tiers(), await admin.tenants(), await admin.keys("acme"), await admin.log.read(100)]
    result = await invoke(*words)
    assert result.exit_code == 1
    assert said in result.stderr and len(result.stderr.splitlines()) == 1 and result.stdout == ""
    assert [await admin.tiers(), await admin.tenants(), await admin.keys("acme"), await admin.log.read(100)] == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["foo"], "No such command 'foo'"),
        (["key", "crate"], "Did you mean 'create'"),
        (["key", "create"], "Missing argument 'TENANT'"),
        (["create", "acme"], "Missing option '--tier'"),
        (["list", "--limit", "0"], "Invalid value for '--limit'"),
    ],
)
async def test_words_that_are_no_command_are_named_with_where_to_look(invoke: Run, words: list[str], said: str) -> None:
    result = await invoke(*words)
    assert result.exit_code == 2 and result.stdout == ""
    assert said in result.stderr and "--help' for help" in result.stderr


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
        "import sys; from typer.testing import CliRunner; from tenants.command.app import app\n"
        f"for words in {EVERY_COMMAND!r}:\n"
        "    result = CliRunner().invoke(app, words)\n"
        "    print(result.exit_code, len(result.output.splitlines()), result.output.strip())\n"
    )
    environment = {"REDIS_URL": "redis://:hunter2@127.0.0.1:1/0", "PYTHONPATH": REPOSITORY}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    said = "tenants: the store at redis://127.0.0.1:1/0 is not reached: nothing listens there."
    assert run.stderr == ""
    assert run.stdout.splitlines() == [f"1 1 {said}"] * len(EVERY_COMMAND)
