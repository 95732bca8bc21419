"""Administration in a gateway: off unless configured; and a gateway whose store was flushed."""

from __future__ import annotations

import pytest

from deployments.config import GatewayArgs
from deployments.serving.ingress import TenantGateway
from tenants.admin import installation
from tenants.admin.operators import Operators, Role
from tenants.store.store import TenantStore
from tests.deployments.gateway_support import Running, opened
from tests.tenants.conftest import until


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
