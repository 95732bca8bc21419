"""A Cluster of three Valkey nodes: the same store, with every tenant's counters on one node."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from redis.crc import key_slot

from policies.errors import Unavailable
from tenants.admin.admin import TenantAdmin
from tenants.live.cache import EntitlementCache
from tenants.live.entitlements import Entitlements, Limits
from tenants.metering.admission import Admission
from tenants.metering.settlement import STEMS
from tenants.records import keyspace
from tenants.store.connection import make_client
from tenants.store.store import TenantStore
from tests.tenants.clusters import running_cluster
from tests.tenants.conftest import populate, refused, until
from tests.tenants.metering.test_projects import share_a_limit
from tests.tenants.requests import attempt, tenant, total

Nodes = tuple[str, list[subprocess.Popen[bytes]]]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest_asyncio.fixture
async def store(nodes: Nodes) -> AsyncIterator[TenantStore]:
    async with await TenantStore.connect(nodes[0], timeout_s=5.0) as connected:
        for node in await connected.servers.primaries():
            await connected.execute("FLUSHALL", node=node)
        yield connected


async def test_every_edit_on_any_node_is_announced_and_listed(store: TenantStore) -> None:
    admin = TenantAdmin(store, who="tester")
    keys = {name: await populate(admin, name) for name in (f"t{i}" for i in range(12))}
    cache = EntitlementCache(store, ttl_s=60.0)
    await cache.start()
    for name, key in keys.items():
        assert (await cache.authenticate(key)).tenant == name
    for name, key in keys.items():
        await store.execute("HSET", keyspace.tenant(name), "rpm", "7")

        async def seen(key: str = key) -> bool:
            return (await cache.authenticate(key)).limits.rpm == 7

        await until(seen)
        await admin.revoke_key(key)
        await until(lambda key=key: refused(cache, key, "invalid_api_key"))  # type: ignore[misc]
    assert set(await admin.tenants()) == set(keys) and await admin.check() == []
    entries = await admin.log.read(100)
    assert [entry["who"] for entry in entries].count("(by hand)") == len(keys) == (len(entries) - 1) / 4
    await cache.aclose()


async def test_limits_usage_and_settlements_of_many_tenants_and_of_keys(store: TenantStore) -> None:
    first, second = Admission(store), Admission(store)
    owns = [tenant(f"t{i}", rpm=10, concurrency=50, quota_images_month=100, key={"rpm": 6}) for i in range(12)]
    for own in owns:
        results = await asyncio.gather(
            *(attempt(a, own, images=2, tokens=5) for a in (first, second) for _ in range(8))
        )
        assert sum(results) == 6
    assert await first.drain(20.0) and await second.drain(20.0)
    for own in owns:
        counters = await total(store, own.tenant)
        assert (counters["requests"], counters["images"], counters["rejected"]) == (6, 12, 10)
        assert counters["tokens_in"] == 30 and counters["tokens_reserved"] == 0
    names = [*(stem("t1") for stem in STEMS), keyspace.usage_period("t1", "2030-01-01", "ab")]
    assert len({key_slot(name.encode()) for name in names}) == 1
    await first.aclose()
    await second.aclose()


def port_of(node: subprocess.Popen[bytes]) -> str:
    words = cast(list[str], node.args)
    return words[words.index("--port") + 1]


def at_home(store: TenantStore, node: str, stem: str, **limits: Any) -> Entitlements:
    """A tenant whose counters are on a node."""
    names = (f"{stem}{i}" for i in range(1000))
    return tenant(next(n for n in names if store.servers.home(keyspace.request(n)) == node), **limits)


# redis-py forgets to close the node that it drops from its map.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_node_that_is_away_puts_its_own_tenants_under_local_limits_and_nobody_else(
    tmp_path: Path, how: signal.Signals
) -> None:
    """Before: one breaker and one grace, so that each gateway counted every tenant by itself, and then refused all."""
    with running_cluster(tmp_path) as (url, processes):
        async with await TenantStore.connect(url) as one, await TenantStore.connect(url) as two:
            await outlive_a_node(one, two, processes[1], how)
    gc.collect()


async def outlive_a_node(
    one: TenantStore, two: TenantStore, node: subprocess.Popen[bytes], how: signal.Signals
) -> None:
    gateways = Admission(one, stale_grace_s=2.0), Admission(two, stale_grace_s=2.0)

    async def admitted(own: Entitlements) -> int:
        return sum(await asyncio.gather(*(attempt(a, own) for a in gateways for _ in range(8))))

    nodes = await one.servers.primaries()
    dead = next(name for name in nodes if name.endswith(port_of(node)))
    node.send_signal(how)
    limited = {name: at_home(one, name, "t", rpm=5) for name in nodes}
    assert await admitted(limited[dead]) == 10  # each gateway by itself
    for name in set(nodes) - {dead}:
        assert await admitted(limited[name]) == 5
    assert one.servers.problem == "" and dead in one.servers.partly_away

    async def refused_there() -> bool:
        try:
            await attempt(gateways[0], replace(limited[dead], limits=Limits(rpm=1000)))
        except Unavailable as error:
            return error.code == "store_unavailable"
        return False

    await until(refused_there)
    for name in set(nodes) - {dead}:
        assert await admitted(at_home(one, name, "u", rpm=5)) == 5
    if how is signal.SIGKILL:
        node.wait()
        node = subprocess.Popen(node.args, stdout=subprocess.DEVNULL)
    else:
        node.send_signal(signal.SIGCONT)
    try:
        await until(lambda: not one.servers.partly_away and not two.servers.partly_away, 60.0)
        assert all([await admission.drain(30.0) for admission in gateways])
        assert (await total(one, limited[dead].tenant))["requests"] >= 10
    finally:
        for admission in gateways:
            await admission.aclose(0.0)
        if how is signal.SIGKILL:
            node.kill()
            node.wait()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_known_keys_go_on_without_a_node_and_edits_on_the_others_are_announced(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as (url, processes):
        async with await TenantStore.connect(url) as store:
            await edit_without_a_node(store, processes)
    gc.collect()


async def edit_without_a_node(store: TenantStore, nodes: list[subprocess.Popen[bytes]]) -> None:
    admin = TenantAdmin(store)
    keys = {f"t{i}": await populate(admin, f"t{i}") for i in range(8)}
    cache = EntitlementCache(store, ttl_s=60.0)
    await cache.start()
    for key in keys.values():
        await cache.authenticate(key)
    victim = next(p for p in nodes if not store.servers.home(keyspace.tier("silver")).endswith(port_of(p)))
    victim.kill()
    victim.wait()
    await until(lambda: store.servers.partly_away and cache._feed.connected)
    assert cache.healthy[0] and cache.healthy[1] == store.servers.partly_away
    lost = [name for name in await store.servers.primaries() if name in store.servers.partly_away]
    for name, key in keys.items():
        await cache.authenticate(key)
        records = [keyspace.tenant(name), keyspace.apikey(keyspace.key_digest(key)), keyspace.tier("silver")]
        if any(store.servers.home(record) in lost for record in records):
            continue  # its records cannot be read: it goes on as it was
        await store.execute("HSET", keyspace.tenant(name), "rpm", "7")

        async def seen(key: str = key) -> bool:
            return (await cache.authenticate(key)).limits.rpm == 7

        await until(seen)
    await cache.aclose()


@pytest.mark.parametrize("url", ["redis+cluster://h:1/2", "redis+cluster://:pw@/", "redis+cluster://a:x"])
def test_a_malformed_cluster_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_client(url, protocol=2)
    assert "pw" not in str(caught.value)


async def test_limits_that_tenants_of_several_nodes_share_are_never_exceeded(store: TenantStore, nodes: Nodes) -> None:
    first = Admission(store)
    owners = ("t0", "t1", "t2", "t3", keyspace.shared("team"))
    assert len({key_slot(owner.encode()) * 3 // 16384 for owner in owners}) > 1
    await share_a_limit(nodes[0], store, first, {"quota_requests_day": 60, "tpm": 5000}, 60)
    await first.aclose()
