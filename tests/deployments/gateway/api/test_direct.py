"""Endpoints that FastAPI is not asked for: a body that is none is refused in the same words."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import Request, Response

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo, TextDelta
from deployments.gateway.api.direct import direct
from tests.deployments.gateway_support import Running, Scripted

COMMON: dict[str, Any] = {"floor": 0.1, "created": 1}


@pytest.fixture
def models(running: Running) -> Scripted:
    models = Scripted(lambda *_: [{"label": "cat", "score": 0.9}], [TextDelta("Hello", 1, "stop", 3, 1)])
    models.add(ModelInfo(id="pictures", task=Task.CLASSIFICATION, classes=("cat",), **COMMON))
    models.add(ModelInfo(id="org/text", task=Task.TEXT, classes=None, context=100, **COMMON))
    running.gateway.service.models = models
    return models


async def test_a_models_answer_is_nothing_that_fastapi_is_asked_for(
    running: Running, models: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked(**_: Any) -> Any:
        raise AssertionError("FastAPI solved dependencies")

    monkeypatch.setattr("fastapi.routing.solve_dependencies", asked)
    key, ids = await running.key(), {"prompt": [[1, 2]]}
    for path, named in (("/v1/completions", {"model": "org/text"}), ("/models/org/text/v1/completions", {})):
        answer = await running.client.post(path, json={**ids, **named}, headers=key)
        assert answer.status_code == 200, answer.text
    picture = await running.client.post("/models/pictures", content=b"a file", headers=key)
    assert picture.status_code == 200 and picture.headers["x-receipt"], picture.text


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "missing"),
        (b"null", "missing"),
        (b"[]", "invalid_type"),
        (b'{"model": ', "invalid_json"),
        (b'{"model": "\xff"}', "invalid_json"),
        (b"[" * 20_000, "invalid_json"),
    ],
)
async def test_a_body_that_is_no_request_is_refused_by_what_it_lacks(
    running: Running, models: Scripted, body: bytes, code: str
) -> None:
    headers = {**await running.key(), "content-type": "application/json"}
    answer = await running.client.post("/v1/completions", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text


def test_what_cannot_be_called_as_it_stands_is_left_to_fastapi() -> None:
    async def shows(request: Request) -> dict[str, int]:
        return {}

    async def asks(request: Request, number: int) -> Response:
        return Response()

    async def optional(request: Request, model: str, number: int = 1) -> Response:
        return Response()

    made = [direct(endpoint, ["model"], lambda _: None) for endpoint in (shows, asks, optional)]
    assert [one is not None for one in made] == [False, False, True]
