"""No secret in anything that is printed, logged, raised or stored, through a tenant's whole life and an outage."""

from __future__ import annotations

import asyncio
import logging
import pickle
import traceback
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from policies.errors import ServiceError
from tenants.admin import installation
from tenants.command.app import app
from tenants.live.cache import EntitlementCache
from tenants.metering.admission import Admission
from tenants.records import keyspace
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend, until

READS = {b"hash": ("HGETALL",), b"string": ("GET",), b"stream": ("XRANGE", "-", "+"), b"zset": ("ZRANGE", "0", "-1")}
READS[b"list"] = ("LRANGE", "0", "-1")


async def everything(store: TenantStore) -> str:
    """All that the store holds, names included."""
    texts = []
    async for key in store.scan(""):
        command, *rest = READS[await store.execute("TYPE", key)]
        texts.append(f"{key} {await store.execute(command, key, *rest)}")
    return "\n".join(texts)


class Witness:
    """Runs commands and requests, and keeps all that they print and raise."""

    def __init__(self, url: str) -> None:
        self.said: list[str] = []
        self._url = url

    async def tenants(self, *words: str, once: bool = False) -> str:
        """What a command prints; `once` where that is a secret, shown once."""
        run = CliRunner().invoke
        result = await asyncio.to_thread(lambda: run(app, list(words), env={"REDIS_URL": self._url}))
        self.said.append(result.stderr + ("" if once else result.stdout))
        return result.stdout.strip()

    async def refused(self, attempt: Awaitable[Any]) -> None:
        """Something that may be refused."""
        try:
            await attempt
        except ServiceError as error:
            self.said.append("".join(traceback.format_exception(error)) + repr(error) + str(pickle.dumps(error)))


class Keys(NamedTuple):
    """Secrets: of a key with a limit and its successor, of another tenant, of a revoked key, and one never issued."""

    key: str
    successor: str
    other: str
    revoked: str
    unknown: str


async def keys_made(witness: Witness) -> Keys:
    """Two tenants and their keys, by the command; then every command that could show one."""
    tenants = witness.tenants
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
    return Keys(key, successor, other, revoked, keyspace.new_secret("acme"))


async def requests_made(
    witness: Witness, keys: Keys, store: TenantStore, cache: EntitlementCache, admission: Admission
) -> None:
    """Requests that are admitted, refused and limited, and one of a key whose record is broken."""
    own = await cache.authenticate(keys.key)
    await cache.authenticate(keys.other)
    witness.said += [repr(own), repr(store), repr(cache)]
    for secret in (keys.revoked, keys.unknown, keys.successor + "x"):
        await witness.refused(cache.authenticate(secret))
    for _ in range(3):
        await witness.refused(admission.admit(own, model="m", images=1).__aenter__())
    await witness.tenants("usage", "acme", "--json")
    await store.execute("HSET", keyspace.apikey(keyspace.key_digest(keys.successor)), "rpm", keys.successor)
    await witness.refused(cache.authenticate(keys.successor))
    await witness.tenants("check")


async def outage(
    witness: Witness, keys: Keys, backend: Backend, cache: EntitlementCache, admission: Admission, held: Path
) -> None:
    """The store dies: an unknown key, a request whose usage is held in a file, a command; and it comes back."""
    backend.kill()
    await witness.refused(cache.authenticate(keys.unknown))
    await until(lambda: not cache.healthy[0])
    witness.said.append(cache.healthy[1])
    async with admission.admit(await cache.authenticate(keys.other), model="m", images=1):
        pass
    await witness.tenants("list")
    witness.said += [path.read_text() for path in held.glob("*")]
    assert "other" in witness.said[-1]
    backend.start()
    await until(lambda: cache.healthy[0])


async def test_no_secret_leaves_the_place_where_it_is_shown_once(
    backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    witness, held = Witness(backend.url), tmp_path / "held"
    keys = await keys_made(witness)
    async with await TenantStore.connect(backend.url) as store:
        await witness.tenants("init")
        await witness.tenants("init", "--json")
        noise, receipts = await installation.noise_secret(store), await installation.receipt_secret(store)
        cache, admission = EntitlementCache(store), Admission(store, held_dir=held)
        await cache.start()
        await requests_made(witness, keys, store, cache, admission)
        await outage(witness, keys, backend, cache, admission, held)
        await store.execute("HDEL", keyspace.apikey(keyspace.key_digest(keys.successor)), "rpm")
        stored = await everything(store)
        await admission.aclose()
        await cache.aclose()
    password = backend.url.split("@")[0].rpartition(":")[2]
    assert all(word in stored for word in ("usage:", "audit", "apikey:")) and len(caplog.records) > 3
    shown = [*witness.said, caplog.text]
    for secret in (*keys, password):
        assert secret not in stored
        assert not [text for text in shown if secret in text]
    for secret in (noise, receipts):  # in its own record, and nowhere else
        assert stored.count(secret) == 1 and not [text for text in shown if secret in text]
