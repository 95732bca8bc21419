"""`tenants key`: a key from the day it is made to the day it is revoked, and its rights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tenants.live.cache import EntitlementCache
from tenants.records import keyspace
from tenants.records.schema import LimitFields
from tenants.store.store import TenantStore
from tests.tenants.conftest import Run, prepare, refused, until


async def test_a_tenants_life_from_its_tier_to_its_revoked_key(tenants: Run, cache: EntitlementCache) -> None:
    await prepare(tenants)
    key = (await tenants("key", "create", "acme", "--label", "ci", "--expires", "30d")).strip()
    assert key.startswith("sk-acme-") and len(key) >= len("sk-acme-") + 43
    own = await cache.authenticate(key)
    assert (own.name, own.tier.name) == ("Acme", "silver") and own.key_expires_at is not None
    await tenants("set", "acme", "tier=gold", "rpm=600")
    shown = json.loads(await tenants("show", "acme", "--json"))
    assert shown == {"id": "acme", "name": "Acme", "tier": "gold", "status": "active", "rpm": "600"}
    await tenants("set", "acme", "--remove", "rpm")
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
