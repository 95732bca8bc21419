"""Through TLS, with users that may do what docs/operations.md says and nothing else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from policies.errors import LimitExceeded, Unavailable
from tenants.admin import installation
from tenants.admin.admin import TenantAdmin
from tenants.admin.directory import Directory
from tenants.command.app import app
from tenants.live.cache import EntitlementCache
from tenants.live.entitlements import Entitlements
from tenants.metering.admission import Admission
from tenants.records import keyspace
from tenants.reports.jobs import Job
from tenants.reports.replicas import ReplicaReport, ServedModels
from tenants.store import acl
from tenants.store.store import TenantStore
from tests.tenants.conftest import REPOSITORY, populate, until
from tests.tenants.requests import total
from tests.tenants.tls import TlsServer, documented_users, running_tls


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    with running_tls(tmp_path_factory.mktemp("tls")) as server:
        yield server


@pytest.fixture
def server(tls_server: TlsServer) -> TlsServer:
    tls_server.client.flushall()
    tls_server.client.execute_command("ACL", "LOG", "RESET")
    return tls_server


def denials(server: TlsServer) -> list[object]:
    """What the server refused a user, by its own log; a refused CLIENT SETINFO shows nowhere else."""
    log = server.client.execute_command("ACL", "LOG")
    return [(entry[b"username"].decode(), entry[b"reason"], entry[b"object"]) for entry in log]


async def served_and_counted(store: TenantStore, admission: Admission, own: Entitlements) -> None:
    """Requests within and beyond a tenant's limits, and what is booked of them."""
    async with admission.admit(own, model="m", images=1, tokens=100) as lease:
        lease.settle(tokens_in=10, tokens_out=20)
    async with admission.admit(own, model="m", tokens=100):
        pass
    with pytest.raises(LimitExceeded):
        async with admission.admit(own, model="m"):
            pass
    assert await admission.drain(20.0)
    used = await total(store)
    assert (used["requests"], used["images"], used["rejected"]) == (2, 1, 1)
    assert (used["tokens_in"] + used["tokens_out"], used["tokens_reserved"]) == (130, 0)
    assert (await admission.remaining(own))["tpm"] == 870


async def models_calibrated(store: TenantStore, operator: ServedModels) -> None:
    """A replica starts, calibrates first, reports; an operator asks for a refit, the replica takes it up, the operator
    calls it off."""
    replica, secret = ServedModels(store), await installation.noise_secret(store)
    await installation.join(store, secret.encode())
    assert await store.place(keyspace.field_shape("f"), "2x3") == "2x3"
    assert await store.place(keyspace.field("f"), "{}") == "{}"
    assert await Directory(store).levels("m") == {0.5}
    first = await replica.claim(Job("m", "r1", "/data", "first start", first="f"))
    assert await store.load_calibration("f") is None and await replica.place_calibration("f", "{}") == 1
    assert await replica.tell(replace(first, state="done")) and await store.load_calibration("f") == {}
    await replica.publish(ReplicaReport("m", "r1", "f", 0, 1, ()))
    job = await operator.ask("m", "/data", who="tester")
    assert await replica.look("m", "f") == (1, job) and await replica.tell(job)
    assert await replica.replace_calibration("f", "{}") == 2
    await operator.call_off(job)
    assert await replica.take_turn("f", "drift") and await replica.resting("f") == "drift"
    await replica.call_off(await replica.ask_of_itself("m", "r1"))
    assert await replica.replaced_calibration("f") is None
    await replica.rest("f", "done")


async def test_a_gateway_serves_edits_limits_and_usage_with_the_documented_rights(
    server: TlsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tenants.live.cache.TOUCH_FLUSH_S", 0.01)
    async with (
        await TenantStore.connect(server.url("admin"), timeout_s=5.0) as admins,
        await TenantStore.connect(server.url("gateway"), timeout_s=5.0) as store,
        await TenantStore.connect(server.url("replica"), timeout_s=5.0) as replicas,
        await TenantStore.connect(server.url("installer"), timeout_s=5.0) as installer,
    ):
        assert len(await installation.create_secrets(installer)) == 2
        admin = TenantAdmin(admins, who="tester")
        secret = await populate(admin, rpm="3", tpm="1000", concurrency="2", quota_tokens_day="5000")
        await admin.set_key(secret, {"rpm": "2"})
        cache, admission = EntitlementCache(store, ttl_s=60.0), Admission(store, held_dir=tmp_path)
        await cache.start()
        await admission.start()
        assert len(await store.identity()) == 16
        await served_and_counted(store, admission, await cache.authenticate(secret))

        await admin.set_tier("silver", {"utility": "0.5"})

        async def lowered() -> bool:
            return (await cache.authenticate(secret)).tier.utility == 0.5

        await until(lowered)

        async def noted() -> bool:
            return next(iter((await admin.keys("acme")).values())).last_used is not None

        await until(noted)
        assert await installation.receipt_secret(store) == await installation.receipt_secret(admins)
        await admission.aclose()
        await cache.aclose()
        await models_calibrated(replicas, ServedModels(admins))
    assert denials(server) == []


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("gateway", ("HSET", "tier:silver", "utility", "1.0")),
        ("gateway", ("DEL", "apikey:x")),
        ("gateway", ("DEL", "audit:log")),
        ("gateway", ("LTRIM", "audit:log", 1, 0)),
        ("gateway", ("LRANGE", "audit:log", 0, -1)),
        *(
            (user, command)
            for user in ("admin", "installer")
            for command in (
                ("DEL", "audit:log"),
                ("SET", "audit:log", ""),
                ("LSET", "audit:log", 0, "{}"),
                ("LTRIM", "audit:log", 1, 0),
                ("LPOP", "audit:log"),
                ("XADD", "audit", "MAXLEN", 0, "*", "who", "nobody"),
                ("EVAL", "return redis.call('DEL', 'audit:log')", 0),
                ("EVAL", "return redis.call('SET', KEYS[1], '')", 1, "audit:log"),
                ("EVAL", "return redis.call('RENAME', KEYS[1], 'tier:x')", 1, "audit:log"),
            )
        ),
        ("admin", ("DEL", "installation")),
        ("gateway", ("SCAN", "0")),
        ("gateway", ("KEYS", "*")),
        ("gateway", ("CONFIG", "GET", "requirepass")),
        ("gateway", ("GET", "secret:noise")),
        ("gateway", ("SET", "secret:noise", "0" * 64)),
        ("gateway", ("SET", "noise-secret-id", "0" * 16)),
        ("gateway", ("SET", "secret:receipts", "0" * 43)),
        ("gateway", ("SET", "calibration:f", "{}")),
        ("gateway", ("GET", "calibration:f")),
        ("gateway", ("SET", "field:f", "{}")),
        ("gateway", ("SET", "calibrate:m", "{}")),
        ("replica", ("HMGET", "apikey:x", "tenant")),
        ("replica", ("EVAL", "return redis.call('HGETALL', KEYS[1])", 1, "tenant:acme")),
        ("replica", ("HSET", "tier:silver", "utility", "1.0")),
        ("replica", ("SET", "tier:silver", "x")),
        ("replica", ("SET", "secret:noise", "0" * 64)),
        ("replica", ("GET", "secret:receipts")),
        ("replica", ("SET", "used:x", "now")),
        ("admin", ("GET", "secret:noise")),
        ("admin", ("SET", "secret:noise", "0" * 64)),
        ("admin", ("SET", "secret:receipts", "0" * 43)),
        ("admin", ("GET", "calibration:f")),
        ("installer", ("GET", "secret:noise")),
        ("installer", ("SET", "secret:noise", "0" * 64, "GET")),
        ("installer", ("SET", "calibration:f", "{}")),
        ("admin", ("GET", "secret:webhook:ops")),
        ("admin", ("XTRIM", "audit:models", "MAXLEN", 0)),
        ("gateway", ("SET", "secret:webhook:ops", "x")),
        ("gateway", ("HSET", "webhooks", "ops", "http://x")),
        ("gateway", ("HSET", "settings", "usage_days", "1")),
        ("admin", ("FLUSHALL",)),
    ],
)
async def test_no_user_may_do_more(server: TlsServer, user: str, command: tuple[str, ...]) -> None:
    async with await TenantStore.connect(server.url(user), timeout_s=5.0) as store:
        with pytest.raises(Unavailable):
            await store.execute(*command)
    assert [who for who, *_ in denials(server)] == [user]  # type: ignore[misc]


async def test_the_command_does_all_it_can_with_an_admins_rights(server: TlsServer) -> None:
    environment = {"REDIS_URL": server.url("admin"), "COLUMNS": "200"}
    async with await TenantStore.connect(server.url("installer"), timeout_s=5.0) as installer:
        await installation.create_secrets(installer)

    async def tenants(*words: str, text: str | None = None) -> str:
        run = CliRunner().invoke
        result = await asyncio.to_thread(lambda: run(app, list(words), input=text, env=environment))
        assert result.exit_code == 0, (words, result.output)
        return result.stdout

    await tenants("tier", "create", "gold", "utility=1.0")
    await tenants("tier", "set", "gold", "rpm=60")
    await tenants("create", "acme", "--tier", "gold")
    await tenants("set", "acme", "rpm=5")
    await tenants("set", "acme", "--remove", "rpm")
    await tenants("focus", "acme", "m", "sky=0.5")
    await tenants("suspend", "acme")
    await tenants("activate", "acme")
    key = json.loads(await tenants("key", "create", "acme", "--json"))
    await tenants("key", "set", key["id"], "rpm=7")
    successor = (await tenants("key", "rotate", key["prefix"], "--overlap", "1h")).strip()
    await tenants("key", "revoke", successor)
    assert {k["status"] for k in json.loads(await tenants("key", "list", "acme", "--json"))} == {"active", "revoked"}
    await tenants("usage", "acme")
    assert (await tenants("usage", "export", "--from", "2020-01-01")).startswith("id,at,tenant")
    what = ("--model", "m", "--level", "0.9", "--why", "a gift")
    assert "Corrected" in await tenants("usage", "adjust", "acme", "requests=3", *what)
    assert "adjustment" in await tenants("usage", "export", "--from", "2020-01-01")
    await tenants("settings", "set", "key_max_age_days=90")
    assert "90" in await tenants("settings", "show")
    await tenants("webhook", "set", "ops", "https://example.com/hook")
    await tenants("webhook", "test", "ops")
    await tenants("webhook", "remove", "ops")
    file = await tenants("export")
    await tenants("apply", "-", "--prune", "--yes", text=file.replace("utility: 1.0", "utility: 0.9"))
    assert "0.9" in await tenants("tier", "show", "gold") and "acme" in await tenants("list")
    assert "valid" in await tenants("check")
    assert json.loads(await tenants("levels", "--json")) == {}
    await tenants("usage", "erase", "acme", "--yes")
    await tenants("tier", "delete", "gold", "--yes")
    entries = json.loads(await tenants("audit", "--json"))
    assert {entry["who"] for entry in entries} == {"admin", "installer"} and len(entries) == 19 + 2 + 5
    assert "every line follows" in await tenants("audit", "--verify")
    assert denials(server) == []


@pytest.mark.parametrize(
    ("user", "authority", "said"),
    [
        ("gateway", "ca.pem", "refused (NOPERM): its user may not do that"),
        ("admin", "stranger.pem", "its certificate is not trusted"),
        ("nobody", "ca.pem", "refuses the user or the password"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_without_the_password(
    server: TlsServer, user: str, authority: str, said: str
) -> None:
    """In a process of its own: asyncio leaves the socket of a failed handshake to the garbage collector."""
    environment = {"REDIS_URL": server.url(user, authority), "PYTHONPATH": REPOSITORY}
    command = [sys.executable, "-m", "tenants.command.app", "list"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and said in run.stderr and len(run.stderr.splitlines()) == 1
    assert server.password not in run.stdout + run.stderr


async def test_the_installer_draws_a_new_secret_and_a_replica_takes_it(server: TlsServer) -> None:
    environment = {"REDIS_URL": server.url("installer")}
    for words in (["init"], ["init"], ["init", "--new-secret", "--yes"]):
        result = await asyncio.to_thread(CliRunner().invoke, app, words, env=environment)
        assert result.exit_code == 0, result.output
    async with await TenantStore.connect(server.url("replica"), timeout_s=5.0) as store:
        await installation.join(store, (await installation.noise_secret(store)).encode())
    assert denials(server) == []


def test_the_docs_give_each_user_and_no_password() -> None:
    users = documented_users()
    assert users == {user: f"on >PASSWORD {rules}" for user, rules in acl.USERS.items()}
    assert all("-@all" in rules for rules in users.values())
