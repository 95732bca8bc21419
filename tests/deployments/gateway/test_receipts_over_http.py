"""The receipt of an answer: what it says, and answers that carry none."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo
from policies.errors import InvalidRequest, Unavailable
from tenants.admin import installation
from tenants.records.receipts import ReceiptError, Signer
from tests.deployments.gateway_support import Running, Scripted

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import


async def answering(running: Running, answer: Any = ()) -> dict[str, str]:
    """A model that answers so, or fails so; headers of a key that may ask it."""
    info = ModelInfo(id="m", task=Task.CLASSIFICATION, classes=("cat", "dog"), floor=0.1, created=1)
    models = Scripted(lambda *_: answer if isinstance(answer, Exception) else list(answer))
    models.add(info)
    running.gateway.service.models = models
    return await running.key() | {"x-request-id": "req-7"}


async def test_an_answer_carries_a_receipt_of_what_it_was_given_at(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = await answering(running)
    answer = await running.client.post("/models/m?utility=0.8&focus=cat=0.5", content=b"x", headers=headers)
    signer = Signer((await installation.receipt_secret(running.admin._store)).encode())
    said = signer.verify(answer.headers["x-receipt"])
    assert (said.request, said.tenant, said.model, said.level) == ("req-7", "acme", "m", 0.8)
    assert said.focus == {"cat": 0.5} and said.policy == answer.headers["x-policy-version"]
    assert said.time.endswith("Z") and len(said.time) == 20


@pytest.mark.parametrize(("error", "status"), [(Unavailable("It is away."), 503), (RuntimeError("a bug"), 500)])
async def test_a_failure_of_ours_says_on_what_terms_it_came(running: Running, error: Exception, status: int) -> None:
    headers = await answering(running, error)
    failed = await running.client.post("/models/m", content=b"x", headers=headers)
    assert failed.status_code == status and failed.headers["x-utility"] == "0.9"
    signer = Signer((await installation.receipt_secret(running.admin._store)).encode())
    assert signer.verify(failed.headers["x-receipt"]).level == 0.9


async def test_what_was_refused_carries_no_receipt(running: Running) -> None:
    headers = await answering(running, InvalidRequest("This is no picture.", param="inputs"))
    refused = await running.client.post("/models/m", content=b"x", headers=headers)
    listed = await running.client.get("/v1/models", headers=headers)
    for answer in (refused, listed):
        assert "x-receipt" not in answer.headers


async def test_without_a_secret_answers_go_out_unsigned_and_readiness_says_so(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers, receipts = await answering(running), running.gateway.receipts
    await running.admin._store.execute("SET", "secret:receipts", "damaged")
    receipts._signer = None  # as of a gateway that starts now
    await receipts.read()
    answer = await running.client.post("/models/m", content=b"x", headers=headers)
    assert answer.status_code == 200 and "x-receipt" not in answer.headers
    ready = await running.client.get("/readyz")
    assert ready.status_code == 200 and ready.json()["status"] == "partial"
    assert "no receipt" in ready.json()["reasons"][0] and "secret:receipts" in ready.json()["reasons"][0]

    await running.admin._store.execute("DEL", "secret:receipts")
    await installation.create_secrets(running.admin._store)
    await receipts.read()
    assert (await running.client.get("/readyz")).json() == {"status": "ok", "reasons": []}
    before = (await running.client.post("/models/m", content=b"x", headers=headers)).headers["x-receipt"]
    monkeypatch.setenv("AIM_RECEIPT_SECRET", "the secret after a rotation")
    await receipts.read()
    after = (await running.client.post("/models/m", content=b"x", headers=headers)).headers["x-receipt"]
    rotated = Signer(b"the secret after a rotation")
    assert rotated.verify(after).tenant == "acme"
    with pytest.raises(ReceiptError, match="before the secret was changed"):
        rotated.verify(before)
