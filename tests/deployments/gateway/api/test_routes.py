"""Where clients look for health, models and answers: aliases, ids with a slash, and models named by the URL."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from deployments.app import build_model
from deployments.config import ModelArgs, Task, model_of
from deployments.contracts.catalog import ModelInfo, TextDelta
from deployments.gateway.api.dependencies import IGNORED
from tests.deployments.gateway_support import Running, Scripted
from tests.deployments.openai_support import QUESTION, Script

INFO = ModelInfo(
    id="org/text", task=Task.TEXT, classes=None, floor=0.1, context=1000, created=1, aliases=("gpt-4o-mini", "a/b")
)


@pytest.fixture
def models(running: Running) -> Scripted:
    models = Scripted(lambda method, *_: [[1, 2, 3]], [TextDelta("Hello", 1, "stop", 3, 1, cached_tokens=2)])
    models.add(INFO)
    running.gateway.service.models = models
    return models


async def client_of(running: Running, base: str = "/v1") -> openai.AsyncOpenAI:
    key = (await running.key())["authorization"].split()[1]
    return openai.AsyncOpenAI(base_url=f"http://gateway{base}", api_key=key, max_retries=0, http_client=running.client)


@pytest.mark.parametrize("name", ["org/text", "gpt-4o-mini", "a/b"])
async def test_a_model_answers_by_each_of_its_names(running: Running, models: Scripted, name: str) -> None:
    client = await client_of(running)
    answer = await client.chat.completions.create(model=name, messages=QUESTION)
    assert (answer.choices[0].message.content, answer.model) == ("Hello", name)
    assert (await client.completions.create(model=name, prompt="a")).choices[0].text == "Hello"
    card = (await client.models.retrieve(name)).model_dump()
    assert (card["id"], card["root"], card["max_model_len"]) == (name, "org/text", 1000)
    assert [model.id async for model in client.models.list()] == ["org/text", "gpt-4o-mini", "a/b"]


@pytest.mark.parametrize("name", ["org/text", "org%2Ftext", "gpt-4o-mini", "a/b"])
async def test_a_url_names_the_model(running: Running, models: Scripted, name: str) -> None:
    client: Any = await client_of(running, f"/models/{name}/v1")
    assert (await client.completions.create(model="whatever", prompt="a")).choices[0].text == "Hello"
    url, key = f"/models/{name}/v1", {"authorization": f"Bearer {client.api_key}"}
    bodies = {
        "/chat/completions": {"messages": QUESTION},
        "/completions": {"prompt": "a"},
        "/responses": {"input": "a"},
    }
    for path, body in bodies.items():
        answer = await running.client.post(url + path, json=body, headers=key)
        assert answer.status_code == 200, answer.text
    assert [model.root async for model in client.models.list()] == ["org/text"]
    missing = await running.client.post("/v1/chat/completions", json={"messages": QUESTION}, headers=key)
    assert missing.json()["error"]["param"] == "model"


async def test_an_alias_gives_no_right_that_its_model_does_not(running: Running, models: Scripted) -> None:
    await running.admin.set_tenant("acme", {"models": "another"})
    client = await client_of(running)
    with pytest.raises(openai.PermissionDeniedError, match="org/text"):
        await client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)
    await running.admin.set_tenant("acme", {"models": "org/text", "utility:org/text": "0.8"})


@pytest.mark.parametrize("field", ["utility:a/b", "rpm:a/b", "focus:a/b:ocean"])
async def test_a_field_for_an_alias_is_an_error_and_not_passed_over(
    running: Running, models: Scripted, field: str
) -> None:
    """Written by hand: the command refuses it, since no model of that name has been served."""
    client = await client_of(running)
    await running.admin._store.execute("HSET", "tenant:acme", field, "0.5" if field[:3] != "rpm" else "5")
    for name in INFO.id, *INFO.aliases:
        with pytest.raises(openai.PermissionDeniedError, match="'a/b', which is another name of the model 'org/text'"):
            await client.chat.completions.create(model=name, messages=QUESTION)


async def test_usage_tells_what_the_cache_had(running: Running, models: Scripted) -> None:
    usage = (await (await client_of(running)).chat.completions.create(model="a/b", messages=QUESTION)).usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 2


async def test_health_is_readiness(running: Running, models: Scripted) -> None:
    assert (await running.client.get("/health")).status_code == 200
    models.waking = ["n"]
    answer = await running.client.get("/health")
    assert (answer.status_code, answer.json()) == (503, (await running.client.get("/readyz")).json())


async def test_a_failure_that_nobody_foresaw_carries_the_headers_of_every_answer(
    running: Running, models: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(running.gateway.service, "encode", broken)
    body = {"model": "a/b", "messages": QUESTION, "store": True}
    answer = await running.client.post("/v1/chat/completions", json=body, headers=await running.key())
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "a bug" not in answer.text and "x-receipt" not in answer.headers
    assert (answer.headers["x-tenant-tier"], answer.headers[IGNORED]) == ("silver", "store")


def test_serve_is_given_a_name_that_a_file_can_have() -> None:
    args = {"model": {"id": "org/text", "task": "text-generation", "source": "nowhere"}}
    made: Any = build_model(ModelArgs.model_validate(args))
    assert made._bound_deployment.name == "org:text"
    assert model_of("org:text") == "org/text" and model_of("plain-1.0") == "plain-1.0"


@pytest.mark.parametrize(
    ("content", "param", "said"),
    [
        (5, "messages[0].content", "send a text, or a list of text parts"),
        ([5], "messages[0].content[0]", "a number was sent; send an object"),
        ([{"type": "text"}], "messages[0].content[0].text", "Missing"),
        ([{"type": "text", "text": 5}], "messages[0].content[0].text", "a number was sent; send a string"),
        ([{"type": "image_url", "image_url": {"url": "x"}}], "messages[0].content[0].type", "not 'image_url'"),
        ([{"type": "text", "text": "a", "colour": 1}], "messages[0].content[0].colour", "Unsupported"),
        (None, "messages[0].content", "Missing"),
    ],
)
async def test_a_mistake_in_a_part_is_said_of_the_part(
    client: openai.AsyncOpenAI, script: Script, content: Any, param: str, said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as error:
        await client.chat.completions.create(model="text", messages=[{"role": "user", "content": content}])
    assert error.value.param == param
