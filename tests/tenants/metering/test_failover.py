"""A primary that dies: Sentinel names another, and gateways follow it without anyone's help."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from policies.errors import Unavailable
from tenants.admin.admin import TenantAdmin
from tenants.live.cache import EntitlementCache
from tenants.metering.admission import Admission
from tenants.store.store import TenantStore
from tests.tenants.conftest import populate, until
from tests.tenants.requests import total
from tests.tenants.sentinel import Pair, running_pair


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with running_pair(tmp_path) as running:
        yield running


async def test_known_keys_go_on_edits_arrive_through_the_new_primary_and_usage_is_kept(
    pair: Pair, tmp_path: Path
) -> None:
    async with await TenantStore.connect(pair.url, timeout_s=5.0) as first:
        admin = TenantAdmin(first, who="tester")
        key, unseen = await populate(admin), await populate(admin, "other")
    async with await TenantStore.connect(pair.url) as store:
        cache = EntitlementCache(store, ttl_s=60.0)
        admission = Admission(store, held_dir=tmp_path / "held")
        await cache.start()
        answered = 0

        async def request() -> None:
            nonlocal answered
            async with admission.admit(await cache.authenticate(key), model="m", images=1, tokens=50) as lease:
                lease.settle(tokens_in=3, tokens_out=4)
            answered += 1

        for _ in range(20):
            await request()
        assert await admission.drain(20.0)
        pair.kill_primary()
        while pair.role(1) != "master":  # not one of a known key fails meanwhile
            await request()
            await asyncio.sleep(0.02)
        assert answered > 21
        await until(lambda: cache.healthy[0])
        await request()

        async with await TenantStore.connect(pair.url, timeout_s=5.0) as again:
            await TenantAdmin(again, who="tester").set_tenant("acme", {"rpm": "5000"})

        async def edited() -> bool:
            return (await cache.authenticate(key)).limits.rpm == 5000

        await until(edited)
        assert (await cache.authenticate(unseen)).tenant == "other"
        assert await admission.drain(20.0)
        used = await total(store)
        assert (used["requests"], used["images"]) == (answered, answered)
        assert (used["tokens_in"], used["tokens_out"], used["tokens_reserved"]) == (3 * answered, 4 * answered, 0)
        await admission.aclose()
        await cache.aclose()


async def test_while_no_primary_is_named_an_unknown_key_is_unavailable_not_refused(pair: Pair) -> None:
    async with await TenantStore.connect(pair.url) as store:
        cache = EntitlementCache(store)
        await cache.start()
        pair.kill_primary()
        with pytest.raises(Unavailable):
            await cache.authenticate("sk-acme-unseen")
        await cache.aclose()
