"""Picture calls as Hugging Face's clients make them, over a gateway whose model is a script."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
from huggingface_hub import InferenceClient
from PIL import Image

from deployments.config import REPOSITORY, Task
from deployments.contracts.catalog import ModelInfo
from deployments.gateway.api.dependencies import IGNORED
from deployments.gateway.api.vision import UNDISCLOSED
from policies.errors import InvalidRequest
from tenants.metering.usage import read_days
from tests.deployments.gateway_support import Running, Scripted

CLIENTS = REPOSITORY / "tests" / "clients"


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(data: bytes = b"", lines: int = 0) -> str:
    text = base64.b64encode(data or png()).decode()
    return "\n".join(text[at : at + lines] for at in range(0, len(text), lines)) if lines else text


class Model:
    """Answers each picture, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, int | None, str]] = []
        self.score: float | None = None

    def __call__(self, method: str, data: bytes, top_k: int | None, form: str, *_: Any) -> Any:
        self.asked.append((data, top_k, form))
        if data == b"not a picture":
            return InvalidRequest("This is not a picture.", param="inputs", code="invalid_image")
        label: dict[str, Any] = {"label": "sky", "score": self.score}
        if form == "labelmap":
            return {"labels": [label | {"index": 3}], "map": encoded()}
        return [label | {"mask": encoded()}]


@pytest.fixture
def model(running: Running) -> Model:
    model = Model()
    models = Scripted(model)
    for name, task in (("labels", Task.CLASSIFICATION), ("masks", Task.SEGMENTATION)):
        models.add(ModelInfo(id=name, task=task, classes=("sky",), floor=0.1, created=1, aliases=(f"org/{name}",)))
    running.gateway.service.models = models
    return model


@pytest_asyncio.fixture
async def url(running: Running, model: Model) -> AsyncIterator[str]:
    """Of the gateway, listening."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(running.app, log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        await serving


async def test_huggingfaces_client_gets_a_number_for_every_score(running: Running, model: Model, url: str) -> None:
    token = (await running.key())["authorization"].split()[1]

    def calls() -> list[Any]:
        labels = InferenceClient(model=f"{url}/models/org/labels", token=token)
        masks = InferenceClient(model=f"{url}/models/masks", token=token)
        return [
            *labels.image_classification(png()),
            *labels.image_classification(png(), function_to_apply="softmax", top_k=3),
            *masks.image_segmentation(png()),
            *masks.image_segmentation(
                png(), subtask="semantic", threshold=0.5, mask_threshold=0.5, overlap_mask_area_threshold=0.1
            ),
        ]

    for score in (None, 0.25):
        model.score = score
        answers = await asyncio.to_thread(calls)
        assert [answer.score for answer in answers] == [score or 1.0] * 4
        assert answers[2].mask.size == (40, 30)
    assert [asked[1] for asked in model.asked[:4]] == [None, 3, None, None]


@pytest.mark.skipif(
    not shutil.which("node") or not (CLIENTS / "node_modules" / "@huggingface" / "inference").exists(),
    reason="Hugging Face's client for JavaScript is missing: npm install --prefix tests/clients",
)
async def test_javascripts_client_takes_every_answer(running: Running, model: Model, url: str, tmp_path: Path) -> None:
    token = (await running.key())["authorization"].split()[1]
    (tmp_path / "a.png").write_bytes(png())
    words = ["node", str(CLIENTS / "pictures.mjs"), url, token, str(tmp_path / "a.png")]
    for score in (None, 0.25):
        model.score = score
        done = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [[{"label": "sky", "score": score or 1}]] * 2


async def test_a_score_that_is_not_disclosed_is_said_to_be_none(running: Running, model: Model) -> None:
    async def ask(name: str, **fields: Any) -> httpx.Response:
        return await running.client.post(f"/models/{name}", json={"inputs": encoded(), **fields}, headers=key)

    key = await running.key()
    for name, parameters in (("labels", {}), ("masks", {}), ("masks", {"format": "labelmap"})):
        answer = await ask(name, parameters=parameters)
        first = answer.json()["labels" if parameters else 0]
        assert ((first[0] if parameters else first)["score"], answer.headers[UNDISCLOSED]) == (1.0, "undisclosed")
    model.score = 0.5
    assert UNDISCLOSED not in (await ask("labels")).headers
    model.score = None
    running.gateway.service.settings.change({"strict": True})
    strict = await ask("labels")
    assert strict.json()[0]["score"] is None and UNDISCLOSED not in strict.headers


@pytest.mark.parametrize(
    ("body", "ignored"),
    [
        ({"inputs": encoded(lines=76)}, None),
        ({"inputs": f"data:image/png;base64,{encoded(lines=76)}"}, None),
        ({"inputs": encoded(), "parameters": None}, None),
        ({"inputs": encoded(), "parameters": {}, "options": {"wait_for_model": True}}, "options"),
        ({"inputs": encoded(), "parameters": {"threshold": 0.9, "subtask": "semantic"}}, "threshold, subtask"),
    ],
)
async def test_what_javascript_sends_is_taken(
    running: Running, model: Model, body: dict[str, Any], ignored: str | None
) -> None:
    answer = await running.client.post("/models/masks", json=body, headers=await running.key())
    assert answer.status_code == 200, answer.text
    assert answer.headers.get(IGNORED) == ignored and model.asked == [(png(), None, "masks")]


async def test_several_pictures_are_answered_in_order_and_counted(running: Running, model: Model) -> None:
    key, colours = await running.key(), [png(colour) for colour in ("red", "green", "blue")]
    pictures = [encoded(colour) for colour in colours]
    answer = await running.client.post("/models/labels", json={"inputs": pictures}, headers=key)
    assert [len(labels) for labels in answer.json()] == [1, 1, 1] and sorted(a[0] for a in model.asked) == sorted(
        colours
    )
    assert float(answer.headers["x-overhead-duration-ms"]) >= 0.0
    await running.gateway.admission.drain(20.0)
    used = (await read_days(running.admin._store, "acme", 1))[0].total
    assert (used["requests"], used["images"]) == (1, 3)
    one = await running.client.post("/models/labels", json={"inputs": pictures[:1]}, headers=key)
    assert isinstance(one.json()[0], list), "a list is answered by a list"
    wrong = await running.client.post(
        "/models/labels", json={"inputs": [pictures[0], encoded(b"not a picture")]}, headers=key
    )
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "inputs[1]")
    spoilt = await running.client.post("/models/labels", json={"inputs": [pictures[0], "%"]}, headers=key)
    assert spoilt.json()["error"]["param"] == "inputs[1]"
    many = await running.client.post("/models/labels", json={"inputs": pictures * 22}, headers=key)
    assert many.json()["error"]["param"] == "inputs" and "64" in many.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "query", "param"),
    [
        ("labels", "format=labelmap", "parameters.format"),
        ("masks", "top_k=3", "parameters.top_k"),
        ("labels", "format=rle", "parameters.format"),
        ("masks", "format=coco", "format"),
        ("labels", "function_to_apply=sigmoid", "function_to_apply"),
        ("masks", "subtask=panoptic", "subtask"),
        ("masks", "colour=red", "colour"),
        ("labels", "top_k=0", "top_k"),
    ],
)
async def test_what_would_change_the_answer_is_refused_by_name(
    running: Running, model: Model, name: str, query: str, param: str
) -> None:
    answer = await running.client.post(f"/models/{name}?{query}", content=png(), headers=await running.key())
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param) and not model.asked


@pytest.mark.parametrize("kind", [None, "application/json", "text/plain", "application/x-www-form-urlencoded"])
async def test_json_is_known_whatever_the_client_calls_it(running: Running, model: Model, kind: str | None) -> None:
    """`curl -d` calls every body a form, `curl --data-binary` a picture, too."""
    headers = await running.key() | ({"content-type": kind} if kind else {})
    body = json.dumps({"inputs": encoded()}).encode()
    assert (await running.client.post("/models/labels", content=body, headers=headers)).status_code == 200
    if kind != "application/json":
        assert (await running.client.post("/models/labels", content=png(), headers=headers)).status_code == 200
    assert [asked[0] for asked in model.asked] == [png()] * len(model.asked)


async def test_a_body_that_is_no_picture_is_told_by_what_it_is(running: Running, model: Model) -> None:
    key = await running.key()
    upload = await running.client.post("/models/labels", files={"file": ("a.png", png())}, headers=key)
    form = await running.client.post("/models/labels", data={"inputs": encoded()}, headers=key)
    address = await running.client.post("/models/labels", json={"inputs": "https://a.example/a.png"}, headers=key)
    listed = await running.client.post("/models/labels", json=[encoded()], headers=key)
    text = await running.client.post("/models/labels", content=b"<html>an error page</html>", headers=key)
    words = await running.client.post(
        "/models/labels", content=b"a few words", headers=key | {"content-type": "text/plain"}
    )
    nothing = await running.client.post(
        "/models/labels", content=b"", headers=key | {"content-type": "application/json"}
    )
    for answer, said in (
        (text, "The body is text, and its content type is not given"),
        (words, "The body is text, and its content type is 'text/plain'"),
        (nothing, "The body is empty"),
        (upload, "multipart/form-data"),
        (form, "application/x-www-form-urlencoded"),
        (address, "nothing is fetched"),
        (listed, "a list was sent; send an object"),
    ):
        assert answer.status_code == 400 and said in answer.json()["error"]["message"], answer.text
    assert not model.asked


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_a_text_call_that_is_not_json_is_told_what_it_is(
    running: Running, model: Model, kind: str | None
) -> None:
    headers = await running.key() | ({"content-type": kind} if kind else {})
    answer = await running.client.post("/v1/chat/completions", content=b'{"model": "m"}', headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_content_type")
    assert (kind or "not given") in error["message"] and "application/json" in error["message"]
