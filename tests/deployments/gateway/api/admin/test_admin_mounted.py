"""Administration in a gateway: off unless configured; and a gateway whose store was flushed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from deployments.config import GatewayArgs
from deployments.serving.ingress import TenantGateway
from tenants.admin import installation
from tenants.admin.operators import Operators, Role
from tenants.store.store import TenantStore
from tests.deployments.gateway_support import Running, opened
from tests.tenants.admin.test_oidc import AUDIENCE, RSA_KEYS, Provider, jwk
from tests.tenants.conftest import until
from tests.tenants.receivers import receiving


async def test_it_is_off_unless_configured(running: Running) -> None:
    assert (await running.client.get("/admin/v1/me")).status_code == 404
    assert (await running.client.get("/admin/v1/openapi.json")).status_code == 404


async def test_where_it_is_on_it_wants_a_store_user_of_its_own(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = running.args.model_copy(update={"gateway": GatewayArgs(admin_api=True)})
    monkeypatch.delenv("AIM_ADMIN_REDIS_URL", raising=False)
    with pytest.raises(ValueError, match="AIM_ADMIN_REDIS_URL"):
        await opened(args)
    monkeypatch.setenv("AIM_ADMIN_REDIS_URL", running.valkey.url_of("admin"))
    gateway = await opened(args)
    own = Running(running.valkey, gateway, running.admin, args)
    store = await TenantStore.connect(running.valkey.url, timeout_s=5.0)
    secret, _ = await Operators(store, running.admin.log).create("jo", Role.VIEWER)
    await store.aclose()
    headers = {"Authorization": f"Bearer {secret}"}
    assert (await own.client.get("/admin/v1/me", headers=headers)).json()["name"] == "jo"
    assert (await own.client.get("/admin/v1/tenants", headers=headers)).json()["data"][0]["id"] == "acme"
    assert (await own.client.get("/admin/v1/tenants")).status_code == 401
    document = (await own.client.get("/admin/v1/openapi.json")).json()
    assert "/tenants/{name}/keys" in document["paths"] and document["servers"] == [{"url": "/admin/v1"}]
    await own.client.aclose()
    await TenantGateway.__del__(gateway)


async def test_a_flushed_store_answers_503_to_good_and_to_wrong_keys(running: Running) -> None:
    headers = await running.key()
    wrong = {"authorization": "Bearer sk-acme-wrong"}
    assert (await running.client.get("/v1/entitlements", headers=wrong)).status_code == 401
    assert (await running.client.get("/v1/entitlements", headers=headers)).status_code == 200
    async with TenantStore(running.valkey.url) as owner:
        await owner.execute("FLUSHALL")

        async def out_of_order() -> bool:
            return (await running.client.get("/v1/entitlements", headers=headers)).status_code == 503

        await until(out_of_order)
        answer = await running.client.get("/v1/entitlements", headers=wrong)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_empty")
        assert int(answer.headers["retry-after"]) > 0
        ready = await running.client.get("/readyz")
        assert ready.status_code == 503 and "tenants init" in ready.text
        await installation.mark(owner)


async def test_a_token_of_the_identity_provider_does_what_its_role_may_and_the_audit_names_its_person(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIM_ADMIN_REDIS_URL", running.valkey.url_of("admin"))
    async with receiving("") as server:
        provider = Provider(server, [jwk(RSA_KEYS[0], "one")])
        roles = {"ops": "owner", "help": "support"}
        oidc = {"issuer": server.url, "audience": AUDIENCE, "roles": roles, "role_claim": "realm.roles"}
        gateway_args = GatewayArgs(admin_api=True, admin_oidc=oidc)  # type: ignore[arg-type]
        args = running.args.model_copy(update={"gateway": gateway_args})
        gateway = await opened(args)
        own = Running(running.valkey, gateway, running.admin, args)
        headers = {"Authorization": f"Bearer {provider.token()}"}
        me = (await own.client.get("/admin/v1/me", headers=headers)).json()
        assert (me["name"], me["role"]) == ("u-1 (oidc)", "support")
        assert (await own.client.post("/admin/v1/tenants/acme/suspend", headers=headers)).status_code == 200
        entry = (await running.admin.log.read(1))[0]
        assert entry["who"] == "u-1 (oidc)" and entry["via"].startswith("http as support")
        refused = await own.client.patch(
            "/admin/v1/tenants/acme", json={"rpm": 1}, headers={**headers, "If-Match": "*"}
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "role_not_entitled")
        for wrong in (provider.token(RSA_KEYS[1]), "a.b.c", provider.token(aud="other")):
            answer = await own.client.get("/admin/v1/me", headers={"Authorization": f"Bearer {wrong}"})
            assert answer.status_code == 401 and wrong not in answer.text
            # A token is no API key.
            assert (await own.client.get("/v1/models", headers={"Authorization": f"Bearer {wrong}"})).status_code == 401
        await provider.tokens.aclose()
        await own.client.aclose()
        await TenantGateway.__del__(gateway)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"issuer": "http://example.com"}, "issuer"),
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": []}, "algorithms"),
        ({"roles": {}}, "roles"),
        ({"roles": {"x": "emperor"}}, "roles"),
        ({"audience": ""}, "audience"),
        ({"jwks_url": "http://example.com"}, "jwks_url"),
        ({"leeway_s": 1e9}, "leeway_s"),
    ],
)
def test_an_identity_provider_that_opens_a_door_is_refused(changes: dict[str, Any], field: str) -> None:
    good = {"issuer": "https://id.example", "audience": AUDIENCE, "roles": {"ops": "owner"}}
    with pytest.raises(ValidationError) as caught:
        GatewayArgs(admin_oidc={**good, **changes})  # type: ignore[arg-type]
    assert caught.value.errors()[0]["loc"][:2] == ("admin_oidc", field)
