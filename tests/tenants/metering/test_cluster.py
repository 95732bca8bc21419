"""A Cluster of three Valkey nodes: the same store, with every tenant's counters on one node."""

from __future__ import annotations

import asyncio
import gc
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from policies.errors import LimitExceeded
from tenants.admin.admin import TenantAdmin
from tenants.live.cache import EntitlementCache
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
        for node in await connected._link.primaries():
            await connected._link.execute("FLUSHALL", node=node)
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
    homes = {store._link._client.keyslot(name) for name in names}
    assert len(homes) == 1
    await first.aclose()
    await second.aclose()


# redis-py forgets to close the node that it drops from its map.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_node_that_dies_fails_its_own_tenants_records_and_known_keys_go_on(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as (url, processes):
        await outlive_a_node(url, processes[1])
    gc.collect()


async def outlive_a_node(url: str, node: subprocess.Popen[bytes]) -> None:
    async with await TenantStore.connect(url) as store:
        admin = TenantAdmin(store)
        keys = [await populate(admin, f"t{i}") for i in range(6)]
        cache, admission = EntitlementCache(store, ttl_s=0.05), Admission(store)
        await cache.start()
        for key in keys:
            await cache.authenticate(key)
        node.kill()
        node.wait()
        await until(lambda: not cache.healthy[0])
        for key in keys:
            async with admission.admit(await cache.authenticate(key), model="m"):
                pass
        with pytest.raises(LimitExceeded):
            await admission.admit(tenant("t1", rpm=0), model="m").__aenter__()
        await admission.aclose(0.0)
        await cache.aclose()


@pytest.mark.parametrize("url", ["redis+cluster://h:1/2", "redis+cluster://:pw@/", "redis+cluster://a:x"])
def test_a_malformed_cluster_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_client(url, protocol=2)
    assert "pw" not in str(caught.value)


async def test_limits_that_tenants_of_several_nodes_share_are_never_exceeded(store: TenantStore, nodes: Nodes) -> None:
    first = Admission(store)
    homes = {store._link._client.keyslot(keyspace.usage(name)) for name in ("t0", "t1", "t2", "t3")}
    assert len({home * 3 // 16384 for home in homes | {store._link._client.keyslot(keyspace.usage("project:team"))}}) > 1
    await share_a_limit(nodes[0], store, first, {"quota_requests_day": 60, "tpm": 5000}, 60)
    await first.aclose()
