"""Embeddings as OpenAI's own client asks for them, over a gateway whose engine is a script."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types import CreateEmbeddingResponse

from policies.errors import InvalidRequest
from policies.terms import Tier
from tests.deployments.openai_support import Script


async def _post(client: openai.AsyncOpenAI, body: dict[str, Any]) -> Any:
    return await client._client.post("http://gateway/v1/embeddings", json={"model": "embed", "input": "a", **body})


async def test_the_client_asks_for_base64_and_gets_numbers(client: openai.AsyncOpenAI, script: Script) -> None:
    made = await client.embeddings.create(model="embed", input=["a" * 8, "b"])
    assert [(one.index, one.embedding) for one in made.data] == [(0, [3.0, 1.0]), (1, [1.0, 1.0])]
    assert (made.usage.prompt_tokens, made.usage.total_tokens, made.model) == (4, 4, "embed")
    assert script.costs == [4] and script.settled == {"tokens_in": 4, "tokens_out": 0} and script.released == 1


@pytest.mark.parametrize(
    ("given", "texts"),
    [("ab", ["ab"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1, 2], [3]], [[1, 2], [3]])],
)
async def test_a_text_comes_in_every_form(
    client: openai.AsyncOpenAI, script: Script, given: Any, texts: list[Any]
) -> None:
    plain = await client.embeddings.create(model="embed", input=given, encoding_format="float", dimensions=2)
    assert script.encoded[-1] == texts
    coded = await client.embeddings.create(model="embed", input=given)
    assert [one.embedding for one in plain.data] == [one.embedding for one in coded.data]
    answer = await _post(client, {"input": given, "encoding_format": "base64"})
    assert isinstance(answer.json()["data"][0]["embedding"], str)
    CreateEmbeddingResponse.model_validate((await _post(client, {"input": given})).json())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"dimensions": 3}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"input": list(range(1001))}, "input"),
        ({"input": ["a", "word " * 900]}, "input"),
        ({"utility": 0.5}, "utility"),
        ({"focus": {"a": 0.5}}, "focus"),
        ({"model": "text"}, "model"),
    ],
)
async def test_what_is_not_served_is_refused_by_name(
    client: openai.AsyncOpenAI, script: Script, fields: dict[str, Any], param: str
) -> None:
    answer = await _post(client, fields)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
    assert not script.costs


async def test_a_models_task_says_which_route_serves_it(client: openai.AsyncOpenAI) -> None:
    for path, fields in (
        ("v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("v1/completions", {"prompt": "a"}),
        ("v1/responses", {"input": "a"}),
        ("models/embed", {"inputs": "aGk="}),
    ):
        body = fields if path == "models/embed" else {"model": "embed", **fields}
        error = (await client._client.post(f"http://gateway/{path}", json=body)).json()["error"]
        assert error["code"] == "wrong_task" and "/v1/embeddings" in error["message"], path


async def test_a_tenant_below_level_one_gets_none(client: openai.AsyncOpenAI, script: Script) -> None:
    """No noise is defined for an embedding: it would be served at 1.0 to who paid for less."""
    script.tier = Tier(name="silver", utility=0.9)
    with pytest.raises(openai.PermissionDeniedError, match="'utility:embed' 1.0") as error:
        await client.embeddings.create(model="embed", input="a")
    assert error.value.code == "embedding_level" and not script.costs and not script.encoded
    script.tier = Tier(name="silver", utility=0.9, utility_by_model={"embed": 1.0})
    await client.embeddings.create(model="embed", input="a")
    script.standing = {"embed": {"ocean": 0.5}}
    with pytest.raises(openai.PermissionDeniedError, match="standing"):
        await client.embeddings.create(model="embed", input="a")


async def test_by_the_models_url_and_a_tokens_refusal_names_the_input(
    client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch, script: Script
) -> None:
    answer = await client._client.post("http://gateway/models/embed/v1/embeddings", json={"input": "a"})
    assert answer.status_code == 200

    async def encode(*_: Any) -> Any:
        raise InvalidRequest("7 is no token.", param="prompt")

    monkeypatch.setattr(script, "encode", encode)
    assert (await _post(client, {})).json()["error"]["param"] == "input"
