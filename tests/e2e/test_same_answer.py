"""The same request gives the same answer: twice, in a mixed batch, to a tenant of the same tier, after a restart."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import CLASSIFIER, SEGMENTER, TEXT, Application

TIERS = ("gold", "silver", "free")


def ask(app: Application, tier_or_key: str, model: str, image: bytes) -> Any:
    """The answer of one model to one fixed request."""
    with app.client(tier_or_key if tier_or_key in TIERS else "gold") as client:
        if tier_or_key not in TIERS:
            client.headers["Authorization"] = f"Bearer {tier_or_key}"
        if model != TEXT:
            answer = client.post(f"/models/{model}", content=image)
            assert answer.status_code == 200, answer.text
            return answer.json()
        body = {"model": TEXT, "prompt": "The sea is", "max_tokens": 16, "temperature": 0}
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]


def pixels(mask: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(mask))))


def same(answer: Any, reference: Any) -> bool:
    """Equal text; or equal labels, scores and masks, but for what a batch of another shape rounds differently.

    A pixel may flip where its two highest logits are closer than that rounding: one in ten thousand is allowed here,
    and `tests/deployments/engines/images/test_segmenter.py` shows on the logits that such pixels are ties.
    """
    if isinstance(answer, str):
        return bool(answer == reference)
    if [part["label"] for part in answer] != [part["label"] for part in reference]:
        return False
    for part, other in zip(answer, reference, strict=True):
        if part["score"] != pytest.approx(other["score"], abs=0.011) or ("mask" in part) != ("mask" in other):
            return False
        if "mask" in part and (pixels(part["mask"]) != pixels(other["mask"])).mean() > 1e-4:
            return False
    return True


@pytest.fixture(scope="session")
def alone(app: Application, ship: bytes, street: bytes) -> dict[tuple[str, str], Any]:
    """Answers to requests that had the models to themselves."""
    pictures = {CLASSIFIER: ship, SEGMENTER: street, TEXT: b""}
    return {(tier, model): ask(app, tier, model, pictures[model]) for tier in TIERS for model in pictures}


def picture(model: str, ship: bytes, street: bytes) -> bytes:
    return street if model == SEGMENTER else ship


@pytest.mark.parametrize("model", [CLASSIFIER, SEGMENTER, TEXT])
def test_twice(app: Application, alone: dict[tuple[str, str], Any], model: str, ship: bytes, street: bytes) -> None:
    for tier in TIERS:
        assert same(ask(app, tier, model, picture(model, ship, street)), alone[tier, model])


@pytest.mark.parametrize("model", [CLASSIFIER, SEGMENTER, TEXT])
def test_in_a_batch_with_other_tenants(
    app: Application, alone: dict[tuple[str, str], Any], model: str, ship: bytes, street: bytes
) -> None:
    data = picture(model, ship, street)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda tier: (tier, ask(app, tier, model, data)), TIERS * 4))
    assert all(same(answer, alone[tier, model]) for tier, answer in answers)


@pytest.mark.parametrize("model", [CLASSIFIER, SEGMENTER, TEXT])
def test_to_another_tenant_of_the_same_tier(
    app: Application, alone: dict[tuple[str, str], Any], model: str, ship: bytes, street: bytes
) -> None:
    if "twin" not in app.tenants("list"):
        app.tenants("create", "twin", "--tier", "free")
    key = app.tenants("key", "create", "twin").strip()
    assert same(ask(app, key, model, picture(model, ship, street)), alone["free", model])


def test_a_degraded_answer_differs_from_the_clean_one(alone: dict[tuple[str, str], Any]) -> None:
    assert alone["free", SEGMENTER] != alone["gold", SEGMENTER]
    assert alone["free", TEXT] != alone["gold", TEXT]
