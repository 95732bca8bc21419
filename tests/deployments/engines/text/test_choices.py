"""What a request leaves open is filled in by the model's own defaults."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.contracts.catalog import TextDelta
from deployments.engines.text.choices import answer
from deployments.engines.text.sampling import SamplingParams
from deployments.gateway.api.text_schemas import ChatRequest
from policies.terms import Modulation, Share
from tests.deployments.tiny_models import spec


async def asked(sampling: dict[str, float], **fields: Any) -> SamplingParams:
    """What the engine is asked for by a request with these fields."""
    seen: list[SamplingParams] = []

    async def generate(_ids: list[int], params: SamplingParams, *_: Any, **__: Any) -> AsyncIterator[TextDelta]:
        seen.append(params)
        yield TextDelta("", 0, "stop", 1, 0)

    generator: Any = SimpleNamespace(
        spec=spec("nowhere"), context=64, generate=generate, check=lambda *_, **__: None,
        language_model=SimpleNamespace(sampling=sampling, encoder=SimpleNamespace(checked=lambda *_: None)),
    )  # fmt: skip
    message = {"role": "user", "content": "hi"}
    body = ChatRequest.model_validate({"model": "tiny", "messages": [message], **fields})
    params, share = body.params(body.max_tokens, None), Share(flow="t")
    async for _ in answer(generator, [[1, 2, 3]], params, Modulation(), share, param="messages"):
        pass
    return seen[0]


OWN = {"temperature": 0.6, "top_p": 0.9, "top_k": 20}


@pytest.mark.parametrize(
    ("sampling", "fields", "drawn"),
    [
        ({}, {}, (1.0, 1.0, 0)),
        (OWN, {}, (0.6, 0.9, 20)),
        (OWN, {"temperature": None}, (0.6, 0.9, 20)),
        (OWN, {"temperature": 0}, (0.0, 0.9, 20)),
        (OWN, {"temperature": 1.0, "top_p": 1.0, "top_k": 0}, (1.0, 1.0, 0)),
    ],
)
async def test_a_request_is_drawn_as_it_says_else_as_the_models_makers_say(
    sampling: dict[str, float], fields: dict[str, Any], drawn: tuple[float, float, int]
) -> None:
    params = await asked(sampling, **fields)
    assert (params.temperature, params.top_p, params.top_k) == drawn


async def test_an_answer_is_as_long_as_asked_or_as_there_is_room_for() -> None:
    assert (await asked({}, max_tokens=7)).max_tokens == 7
    assert (await asked({})).max_tokens == 61, "of 64, three are the prompt's"
