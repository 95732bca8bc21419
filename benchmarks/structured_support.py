"""What `benchmarks.structured` asks and whom: random schemas, and a gateway's API over an engine in this process."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import httpx
import openai
from hypothesis import HealthCheck, Phase, given, settings

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo, TextDelta
from deployments.engines.text.choices import answer
from deployments.engines.text.generator import Generator
from deployments.gateway.api.api import build_api
from policies.terms import Modulation, Share, Tier
from tests.deployments.openai_support import Script
from tests.deployments.schema_support import Schema, random_schemas


def schemas(count: int) -> list[Schema]:
    """So many different ones, the same each time."""
    found: dict[str, Schema] = {}

    @settings(
        max_examples=count * 20,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(random_schemas())
    def collect(schema: Schema) -> None:
        if len(found) < count:
            found.setdefault(json.dumps(schema), schema)

    collect()
    return list(found.values())


class Engine(Script):
    """A gateway's API over an engine in this process. A key is the level that it is answered at."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self._generator = generator
        context = generator.context
        self.model = ModelInfo(
            id=generator.model_id, task=Task.TEXT, classes=None, floor=0.1, context=context, created=1,
            tools=generator.tools,
        )  # fmt: skip

    async def authenticate(self, context: Any, api_key: str) -> Any:
        tier = Tier(name=api_key, utility=float(api_key), logprobs=True)
        share = partial(Share, flow=api_key)
        context.entitlements = SimpleNamespace(tenant=api_key, tier=tier, share=share)
        return context.entitlements

    async def encode(self, context: Any, info: ModelInfo, prompt: Any) -> list[list[int]]:
        ids: list[list[int]] = self._generator.language_model.encoder.prompts(prompt)[1]
        return ids

    @asynccontextmanager
    async def admit(self, context: Any, model_id: str, cost: Any, **terms: Any) -> AsyncIterator[Any]:
        async with super().admit(context, model_id, cost, **terms) as ticket:
            ticket.stream = partial(self._answered, context.entitlements.tier)
            yield ticket

    async def _answered(
        self, tier: Tier, method: str, prompts: list[list[int]], field: str, params: dict[str, Any]
    ) -> AsyncGenerator[TextDelta]:
        terms = Modulation(utility=tier.utility, disclosure=tier.disclosure(tier.utility))
        share = Share(flow=tier.name)
        async with aclosing(answer(self._generator, prompts, params, terms, share, param=field)) as deltas:
            async for delta in deltas:
                yield delta


def client_of(engine: Engine, level: float) -> openai.AsyncOpenAI:
    """OpenAI's client of it, at a level."""
    transport = httpx.ASGITransport(build_api(engine))  # type: ignore[arg-type]
    http = httpx.AsyncClient(transport=transport)
    return openai.AsyncOpenAI(base_url="http://gateway/v1", api_key=str(level), max_retries=0, http_client=http)
