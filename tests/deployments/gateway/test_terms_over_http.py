"""A request's own level and focus by every way in which they can be sent: none of them adds up to more than granted."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from deployments.config import AppArgs, StoreArgs, Task
from deployments.contracts.catalog import ModelInfo, TextDelta
from tenants.admin.admin import TenantAdmin
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from deployments.serving.ingress import TenantGateway
    from tests.deployments.gateway_support import Scripted, opened

PICTURE = base64.b64encode(b"x").decode()
CHAT = "/v1/chat/completions"
SEGMENTER = ModelInfo(id="m", task=Task.SEGMENTATION, classes=("cat", "dog"), floor=0.1, created=1)
WRITER = ModelInfo(id="text", task=Task.TEXT, classes=None, floor=0.1, context=1000, created=1)
TIERS = {
    "gold": {"utility": "1.0"},
    "silver": {"utility": "0.9", "focus_max": "0.3"},
    "bronze": {"utility": "0.9"},
    "lower": {"utility": "0.9", "lower_utility": "yes"},
}


class Client:
    """Sends each request with a new key of a tier's tenant, which no cache knows; any model answers anything."""

    def __init__(self, http: httpx.AsyncClient, admin: TenantAdmin) -> None:
        self.http, self.admin = http, admin

    async def send(self, tier: str, method: str, path: str, **request: Any) -> httpx.Response:
        key, _ = await self.admin.create_key(tier)
        headers = {"authorization": f"Bearer {key}", **request.pop("headers", {})}
        return await self.http.request(method, path, headers=headers, **request)

    async def picture(self, tier: str, query: str = "", parameters: str | None = None) -> httpx.Response:
        """Parameters as JSON text, in which a name may come twice."""
        if parameters is None:
            return await self.send(tier, "POST", f"/models/m{query}", content=b"x")
        body = f'{{"inputs": "{PICTURE}", "parameters": {parameters}}}'
        json_type = {"content-type": "application/json"}
        return await self.send(tier, "POST", f"/models/m{query}", content=body, headers=json_type)

    async def chat(self, tier: str, more: str) -> httpx.Response:
        """More fields as JSON text."""
        body = f'{{"model": "text", "max_tokens": 2, "messages": [{{"role": "user", "content": "Hi"}}], {more}}}'
        return await self.send(tier, "POST", CHAT, content=body, headers={"content-type": "application/json"})


@pytest_asyncio.fixture
async def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.delenv("REDIS_URL", raising=False)

    with EmbeddedValkey(tmp_path / "store") as valkey:
        spec = {"id": "m", "task": "image-segmentation", "source": "nowhere"}
        args = AppArgs(models=(spec,), store=StoreArgs(redis_url=valkey.url, data_dir=str(tmp_path)))  # type: ignore[arg-type]
        async with await TenantStore.connect(valkey.url, timeout_s=5.0) as store:
            admin = TenantAdmin(store, who="tester")
            for name, fields in TIERS.items():
                await admin.create_tier(name, fields)
                await admin.create_tenant(name, tier=name)
            gateway = await opened(args)
            models = Scripted(pieces=[TextDelta("Hello", 2, "length", 5, 2)])
            for info in (SEGMENTER, WRITER):
                models.add(info)
            gateway.service.models = models
            transport = httpx.ASGITransport(gateway.__serve_build_asgi_app__())
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
                yield Client(http, admin)
        await TenantGateway.__del__(gateway)


def refused(answer: httpx.Response, code: str, param: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (403, code, param), answer.text


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ("?focus=cat=0.3", None),
        ("", '{"focus": {"cat": 0.3, "cat": 0.3}}'),
        ("", '{"focus": {"cat": 0.3, "c\\u0061t": 0.3}}'),
        ("", '{"focus": {"cat": 0.3}, "focus": {"cat": 0.3}}'),
        ("?focus=cat=0.3", '{"focus": {"cat": 0.3}}'),
    ],
)
async def test_a_class_that_is_named_twice_counts_once(client: Client, query: str, parameters: str | None) -> None:
    answer = await client.picture("silver", query, parameters)
    assert answer.status_code == 200 and answer.headers["x-focus"] == "cat=0.3"
    refused(await client.picture("bronze", query, parameters), "focus_not_entitled", "focus")
    for standing, sum_ in (("0.2", "cat=0.3"), ("-0.2", "cat=0.1")):
        await client.admin.set_tenant("silver", {"focus:m:cat": standing})
        assert (await client.picture("silver", query, parameters)).headers["x-focus"] == sum_


@pytest.mark.parametrize("query", ["?focus=cat=0.3,cat=0.3", "?focus=cat=0.3&focus=cat=0.1"])
async def test_a_class_that_a_query_names_twice_is_refused(client: Client, query: str) -> None:
    answer = await client.picture("silver", query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "focus.cat")


@pytest.mark.parametrize("name", ["Cat", " cat", "cat\u200b", "ｃａｔ"])
async def test_a_class_has_its_exact_name_alone(client: Client, name: str) -> None:
    answer = await client.picture("silver", "", json.dumps({"focus": {"cat": 0.3, name: 0.3}}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_class")


@pytest.mark.parametrize(
    "focus",
    [
        '{"ocean": 0.3, "ocean": 0.3}',
        '{"ocean": 0.1, "Ocean": 0.1, " OCEAN ": 0.1}',
        '{"oc\\u00adean": 0.1, "\\uff4fcean": 0.1, "ocean\\u200b": 0.1}',
    ],
)
async def test_a_word_that_is_spelt_in_several_ways_counts_once(client: Client, focus: str) -> None:
    await client.admin.set_tenant("silver", {"focus:text:ocean": "0.2"})
    answer = await client.chat("silver", f'"focus": {focus}')
    assert answer.status_code == 200 and answer.headers["x-focus"] == "ocean=0.3"
    await client.admin.set_tenant("gold", {"focus_max": "0.25"})
    answer = await client.chat("gold", f'"focus": {focus}')
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "focus_not_entitled")


async def test_a_grant_of_focus_is_none_of_logit_bias(client: Client) -> None:
    refused(await client.chat("silver", '"focus": {"ocean": 0.3}, "logit_bias": {"5": 1}'),
            "logprobs_not_entitled", "logit_bias")  # fmt: skip


async def test_no_header_sets_terms(client: Client) -> None:
    headers = {"x-focus": "cat=0.9", "x-utility": "1", "focus": "cat=0.9", "utility": "1"}
    answer = await client.send("bronze", "POST", "/models/m", content=b"x", headers=headers)
    assert answer.headers["x-utility"] == "0.9" and "x-focus" not in answer.headers


async def test_a_standing_focus_needs_no_grant_and_takes_no_addition(client: Client) -> None:
    await client.admin.set_tenant("bronze", {"focus:m:cat": "0.9"})
    assert (await client.picture("bronze")).headers["x-focus"] == "cat=0.9"
    for strength in ("0.05", "-0.05"):
        refused(await client.picture("bronze", f"?focus=cat={strength}"), "focus_not_entitled", "focus")


@pytest.mark.parametrize(("tier", "asked", "level"), [("gold", "0.5", "0.5"), ("lower", "0.5", "0.5"),
                                                      ("bronze", "0.909", "0.9")])  # fmt: skip
async def test_a_level_that_is_granted_is_given(client: Client, tier: str, asked: str, level: str) -> None:
    assert (await client.picture(tier, f"?utility={asked}")).headers["x-utility"] == level
    assert (await client.picture(tier, "", f'{{"utility": {asked}}}')).headers["x-utility"] == level
    assert (await client.chat(tier, f'"utility": {asked}')).headers["x-utility"] == level


async def test_a_lower_level_that_is_not_granted_is_refused_by_every_way(client: Client) -> None:
    for answer in (
        await client.picture("bronze", "?utility=0.89"),
        await client.picture("bronze", "", '{"utility": 0.9, "utility": 0.89}'),
        await client.picture("bronze", "?utility=0.89", '{"utility": 0.9}'),
        await client.chat("bronze", '"utility": 0.9, "utility": 0.89'),
    ):
        refused(answer, "lower_utility_not_entitled", "utility")
    twice = await client.picture("bronze", "?utility=0.9&utility=0.89")
    assert (twice.status_code, twice.json()["error"]["param"]) == (400, "utility")
    refused(await client.picture("bronze", "?utility=0.95"), "utility_not_entitled", "utility")


async def test_a_key_can_read_what_it_may_ask_for(client: Client) -> None:
    async def terms(tier: str) -> tuple[Any, ...]:
        view = (await client.send(tier, "GET", "/v1/entitlements")).json()
        found = {tuple(model[n] for n in ("utility", "lower_utility", "focus_max")) for model in view["models"]}
        cards = (await client.send(tier, "GET", "/v1/models")).json()["data"]
        (lowest,) = {card["lowest_utility"] for card in cards}
        (one,) = found
        return (*one, lowest)

    assert await terms("gold") == (1.0, True, 0.99, 0.1)
    assert await terms("silver") == (0.9, False, 0.3, 0.9)
    assert await terms("bronze") == (0.9, False, 0.0, 0.9)
    assert await terms("lower") == (0.9, True, 0.0, 0.1)
    await client.admin.set_tenant("gold", {"focus_locked": "yes", "lower_utility": "no"})
    assert await terms("gold") == (1.0, False, 0.0, 1.0)
