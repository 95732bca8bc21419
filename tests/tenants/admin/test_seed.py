import logging
import stat
import subprocess
from pathlib import Path

import pytest

from tenants.admin import installation
from tenants.admin.admin import TenantAdmin
from tenants.admin.seed import read_env, seed_demo
from tenants.live.cache import EntitlementCache
from tenants.records import keyspace
from tenants.records.schema import RecordError
from tenants.store.store import TenantStore


async def test_three_tenants_of_three_tiers_have_keys_that_work(
    store: TenantStore, cache: EntitlementCache, tmp_path: Path
) -> None:
    path = await seed_demo(store, tmp_path, "http://127.0.0.1:8000")
    for file in (path, tmp_path / "admin.env"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    values = read_env(path)
    assert values["BASE_URL"] == "http://127.0.0.1:8000" and store.url not in path.read_text()
    assert len(values) == 4 and not any("REDIS" in name for name in values)
    for name, utility, weight in (("gold", 1.0, 4.0), ("silver", 0.9, 2.0), ("free", 0.7, 1.0)):
        own = await cache.authenticate(values[f"{name.upper()}_KEY"])
        assert (own.tenant, own.tier.name, own.tier.utility, own.limits.weight) == (
            f"demo-{name}",
            name,
            utility,
            weight,
        )
        assert own.tier.focus_limit(utility) == {"gold": 0.99, "silver": 0.9, "free": 0.0}[name]
        assert own.tier.may_lower(utility) == (name == "gold")
        assert own.limits.rpm == (6000 if name == "free" else None)
        assert own.limits.concurrency is own.limits.tpm is None


async def test_a_later_start_keeps_keys_and_edits_and_rewrites_the_addresses(
    store: TenantStore, tmp_path: Path
) -> None:
    first = read_env(await seed_demo(store, tmp_path, "http://a"))
    admin = TenantAdmin(store)
    await admin.set_tier("free", {"utility": "0.5"})
    await store.execute("DEL", "tenant:demo-silver", "tier:silver")
    second = read_env(await seed_demo(store, tmp_path, "http://b", redis_url="redis://elsewhere"))
    assert {k: v for k, v in first.items() if k.endswith("_KEY")} == {
        k: v for k, v in second.items() if k.endswith("_KEY")
    }
    assert second["BASE_URL"] == "http://b"
    assert read_env(tmp_path / "admin.env") == {
        "REDIS_URL": "redis://elsewhere",
        "OWNER_REDIS_URL": "redis://elsewhere",
    }
    assert (await admin.tier("free")).terms.utility == 0.5
    assert set(await admin.tenants()) == {"demo-gold", "demo-free"}
    assert len(await admin.names(keyspace.APIKEY)) == 3


async def test_a_lost_file_is_written_again_with_new_keys(
    store: TenantStore, cache: EntitlementCache, tmp_path: Path
) -> None:
    first = read_env(await seed_demo(store, tmp_path, "http://a"))
    (tmp_path / "demo.env").unlink()
    second = read_env(await seed_demo(store, tmp_path, "http://a"))
    assert first["GOLD_KEY"] != second["GOLD_KEY"]
    for key in (first["GOLD_KEY"], second["GOLD_KEY"]):
        assert (await cache.authenticate(key)).tenant == "demo-gold"


async def test_a_shell_reads_the_file(store: TenantStore, tmp_path: Path) -> None:
    path = await seed_demo(store, tmp_path, "http://h/a b$c'd")
    script = f'. "{path}"; . "{tmp_path}/admin.env"; printf "%s|%s|%s" "$BASE_URL" "$GOLD_KEY" "$REDIS_URL"'
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    values = read_env(path)
    assert shown == f"http://h/a b$c'd|{values['GOLD_KEY']}|{store.url}"


async def test_no_key_and_no_password_is_logged_or_kept_in_the_store(
    store: TenantStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        values = read_env(await seed_demo(store, tmp_path, "http://a"))
        await installation.create_secrets(store)
    secrets = [values[f"{name}_KEY"] for name in ("GOLD", "SILVER", "FREE")]
    password = store.url.split("@")[0].rpartition(":")[2]
    assert not any(secret in caplog.text for secret in (*secrets, password))
    stored = []
    async for key in store.scan(""):
        kind = (await store.execute("TYPE", key)).decode()
        commands = {"hash": ("HGETALL", key), "list": ("LRANGE", key, 0, -1), "zset": ("ZRANGE", key, 0, -1)}
        command = (commands | {"stream": ("XRANGE", key, "-", "+"), "string": ("GET", key)})[kind]
        stored.append(repr(await store.execute(*command)) + key)
    assert not any(secret in text for secret in secrets for text in stored)
    assert any(keyspace.key_digest(secrets[0]) in text for text in stored)


async def test_a_demo_record_that_an_admin_broke_is_named(store: TenantStore, tmp_path: Path) -> None:
    await seed_demo(store, tmp_path, "http://a")
    (tmp_path / "demo.env").unlink()
    await store.execute("HSET", "tenant:demo-gold", "rpm", "x")
    with pytest.raises(RecordError, match="tenant:demo-gold rpm"):
        await seed_demo(store, tmp_path, "http://a")
