"""No secret in anything that is printed, logged, raised or stored, through a tenant's whole life and an outage."""

from __future__ import annotations

import asyncio
import logging
import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from policies.errors import ServiceError
from tenants import keyspace
from tenants.admission import Admission
from tenants.cache import EntitlementCache
from tenants.cli import app
from tenants.store import TenantStore
from tests.tenants.conftest import Backend, until

READS = {b"hash": ("HGETALL",), b"string": ("GET",), b"stream": ("XRANGE", "-", "+"), b"zset": ("ZRANGE", "0", "-1")}


async def everything(store: TenantStore) -> str:
    """All that the store holds, names included."""
    texts = []
    async for key in store.scan(""):
        command, *rest = READS[await store.execute("TYPE", key)]
        texts.append(f"{key} {await store.execute(command, key, *rest)}")
    return "\n".join(texts)


async def test_no_secret_leaves_the_place_where_it_is_shown_once(
    backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []

    async def tenants(*words: str, once: bool = False) -> str:
        run = CliRunner().invoke
        result = await asyncio.to_thread(lambda: run(app, list(words), env={"REDIS_URL": backend.url}))
        said.append(result.stderr + ("" if once else result.stdout))
        return result.stdout.strip()

    async def refused(attempt: Any) -> None:
        try:
            await attempt
        except ServiceError as error:
            said.append("".join(traceback.format_exception(error)) + repr(error) + str(pickle.dumps(error)))

    await tenants("tier", "create", "gold", "utility=1.0", "rpm=2")
    await tenants("create", "acme", "--tier", "gold")
    key = await tenants("key", "create", "acme", once=True)
    successor = await tenants("key", "rotate", key, "--overlap", "1h", once=True)
    revoked = await tenants("key", "create", "acme", once=True)
    await tenants("key", "set", key, "rpm=2")
    await tenants("tier", "create", "free", "utility=0.7")
    await tenants("create", "other", "--tier", "free")
    other = await tenants("key", "create", "other", once=True)
    await tenants("key", "revoke", revoked)
    for words in (
        ["key", "list", "acme"],
        ["key", "list", "acme", "--json"],
        ["export"],
        ["check"],
        ["audit", "--json"],
    ):
        await tenants(*words)
    unknown = keyspace.new_secret("acme")
    async with await TenantStore.connect(backend.url) as store:
        noise = await store.noise_secret()
        cache, admission = EntitlementCache(store), Admission(store, held_dir=tmp_path / "held")
        await cache.start()
        own = await cache.authenticate(key)
        await cache.authenticate(other)
        said += [repr(own), repr(store), repr(cache)]
        for secret in (revoked, unknown, successor + "x"):
            await refused(cache.authenticate(secret))
        for _ in range(3):
            await refused(admission.admit(own, model="m", images=1).__aenter__())
        await tenants("usage", "acme", "--json")
        await store.execute("HSET", keyspace.apikey(keyspace.key_digest(successor)), "rpm", successor)
        await refused(cache.authenticate(successor))
        await tenants("check")
        backend.kill()
        await refused(cache.authenticate(unknown))
        await until(lambda: not cache.healthy[0])
        said.append(cache.healthy[1])
        async with admission.admit(await cache.authenticate(other), model="m", images=1):
            pass
        await tenants("list")
        said += [path.read_text() for path in (tmp_path / "held").glob("*")]
        assert "other" in said[-1]
        backend.start()
        await until(lambda: cache.healthy[0])
        await store.execute("HDEL", keyspace.apikey(keyspace.key_digest(successor)), "rpm")
        stored = await everything(store)
        await admission.aclose()
        await cache.aclose()
    password = backend.url.split("@")[0].rpartition(":")[2]
    assert all(word in stored for word in ("usage:", "audit", "apikey:")) and len(caplog.records) > 3
    for secret in (key, successor, other, revoked, unknown, password):
        assert secret not in stored
        assert not [text for text in (*said, caplog.text) if secret in text]
    assert noise in stored  # its own record, and nowhere else
    assert stored.count(noise) == 1 and not [text for text in (*said, caplog.text) if noise in text]
