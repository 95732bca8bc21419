"""Admins edit Redis; the next answers follow."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.conftest import CLASSIFIER, SEGMENTER, Application, mask_of, within_a_second


@pytest.fixture
def client(app: Application) -> Iterator[httpx.Client]:
    """A tenant of the free tier, made with the command; taken back to what it was after each test."""
    if "mutable" not in app.tenants("list"):
        app.tenants("create", "mutable", "--tier", "free", "--name", "Mutable")
    key = app.tenants("key", "create", "mutable").strip()
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=app.base_url, headers=headers, timeout=180.0) as client:
        yield client
    for field in app.redis("HKEYS", "tenant:mutable").splitlines():
        if field not in ("name", "status", "tier"):
            app.redis("HDEL", "tenant:mutable", field)
    app.redis("HSET", "tenant:mutable", "tier", "free", "status", "active")


def classify(client: httpx.Client, image: bytes) -> httpx.Response:
    return client.post(f"/models/{CLASSIFIER}", content=image)


def test_a_tier_set_with_redis_cli_shows_in_headers_and_content(
    app: Application, client: httpx.Client, ship: bytes
) -> None:
    before = classify(client, ship)
    assert before.headers["x-tenant-tier"] == "free" and len(before.json()) == 1
    app.redis("HSET", "tenant:mutable", "tier", "gold")
    assert within_a_second(lambda: classify(client, ship).headers["x-tenant-tier"] == "gold")
    after = classify(client, ship)
    assert after.headers["x-utility"] == "1" and len(after.json()) == 10
    assert after.headers["x-policy-version"] != before.headers["x-policy-version"]
    with app.client("gold") as gold:
        assert after.json() == classify(gold, ship).json()


def test_a_revoked_key_is_refused(app: Application, client: httpx.Client, ship: bytes) -> None:
    key = app.tenants("key", "create", "mutable").strip()
    headers = {"Authorization": f"Bearer {key}"}

    def status() -> int:
        return client.post(f"/models/{CLASSIFIER}", content=ship, headers=headers).status_code

    assert status() == 200
    app.tenants("key", "revoke", key)
    assert within_a_second(lambda: status() == 401)


def test_a_suspended_tenant_is_refused_and_comes_back(app: Application, client: httpx.Client, ship: bytes) -> None:
    app.tenants("suspend", "mutable")
    assert within_a_second(lambda: classify(client, ship).status_code == 403)
    assert classify(client, ship).json()["error"]["code"] == "tenant_suspended"
    app.tenants("activate", "mutable")
    assert within_a_second(lambda: classify(client, ship).status_code == 200)


def test_one_hset_turns_a_tenants_model_towards_pedestrians(
    app: Application, client: httpx.Client, street: bytes, street_classes: list[str]
) -> None:
    pedestrian = street_classes.index("pedestrian")
    app.redis("HSET", "tenant:mutable", "tier", "gold")
    assert within_a_second(lambda: client.get("/v1/entitlements").json()["tier"] == "gold")
    plain = mask_of(client.post(f"/models/{SEGMENTER}", content=street).json(), street_classes)
    app.redis("HSET", "tenant:mutable", f"focus:{SEGMENTER}:pedestrian", "0.9")
    assert within_a_second(
        lambda: "pedestrian=0.9" in client.post(f"/models/{SEGMENTER}", content=street).headers.get("x-focus", "")
    )
    focused = mask_of(client.post(f"/models/{SEGMENTER}", content=street).json(), street_classes)
    assert (focused == pedestrian).sum() > (plain == pedestrian).sum()
    request = client.post(f"/models/{SEGMENTER}?focus=pedestrian=-0.9", content=street)
    assert "x-focus" not in request.headers
    assert (mask_of(request.json(), street_classes) == plain).all()


def test_an_invalid_tier_record_fails_closed_for_its_tenants_alone(
    app: Application, client: httpx.Client, ship: bytes
) -> None:
    app.tenants("tier", "create", "broken", "utility=0.5")
    app.redis("HSET", "tier:broken", "utility", "abc")
    app.redis("HSET", "tenant:mutable", "tier", "broken")
    assert within_a_second(lambda: classify(client, ship).status_code == 403)
    assert classify(client, ship).json()["error"]["code"] == "entitlements_invalid"
    with app.client("free") as other:
        assert classify(other, ship).status_code == 200
    app.redis("HSET", "tier:broken", "utility", "0.5")
    assert within_a_second(lambda: classify(client, ship).status_code == 200)


def test_a_rate_limit_is_enforced_and_told(app: Application, client: httpx.Client, ship: bytes) -> None:
    app.redis("HSET", "tenant:mutable", "rpm", "3")
    assert within_a_second(lambda: client.get("/v1/entitlements").json()["limits"]["rpm"] == 3)
    statuses = [classify(client, ship) for _ in range(6)]
    refused = [r for r in statuses if r.status_code == 429]
    assert refused and refused[-1].headers["retry-after"].isdigit()
    assert refused[-1].headers["x-ratelimit-remaining-requests"] == "0"
    assert refused[-1].json()["error"]["code"] == "rate_limit_exceeded"


def test_a_models_own_level_and_the_models_list_are_followed(
    app: Application, client: httpx.Client, ship: bytes
) -> None:
    app.redis("HSET", "tenant:mutable", f"utility:{CLASSIFIER}", "0.5")
    assert within_a_second(lambda: classify(client, ship).headers.get("x-utility") == "0.5")
    app.redis("HSET", "tenant:mutable", "models", SEGMENTER)
    assert within_a_second(lambda: classify(client, ship).status_code == 403)
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == [SEGMENTER]


def test_gateways_and_replicas_wanted_no_right_that_they_do_not_have(app: Application) -> None:
    assert set(app.redis("ACL", "USERS").split()) == {"default", "gateway", "replica", "admin"}
    refused = app.redis("ACL", "LOG").splitlines()
    assert "gateway" not in refused and "replica" not in refused and "admin" not in refused, "\n".join(refused)
