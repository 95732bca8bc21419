"""What `benchmarks.structured` asks and whom: random schemas, and a gateway's API over an engine in this process."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

import httpx
import openai
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo, TextDelta
from deployments.engines.text.choices import answer
from deployments.engines.text.generator import Generator
from deployments.engines.text.grammars.matcher import Matcher
from deployments.engines.text.seats import Seats
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
        found = await super().authenticate(context, api_key)
        tier = Tier(name=api_key, utility=float(api_key), logprobs=True)
        found.tenant, found.tier, found.share = api_key, tier, partial(Share, flow=api_key)
        return found

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
        params = {name: value for name, value in params.items() if name != "whole"}  # how a replica paces messages
        async with aclosing(answer(self._generator, prompts, params, terms, share, param=field)) as deltas:
            async for delta in deltas:
                yield delta


def client_of(engine: Engine, level: float) -> openai.AsyncOpenAI:
    """OpenAI's client of it, at a level."""
    transport = httpx.ASGITransport(build_api(engine))  # type: ignore[arg-type]
    http = httpx.AsyncClient(transport=transport)
    return openai.AsyncOpenAI(base_url="http://gateway/v1", api_key=str(level), max_retries=0, http_client=http)


class Clock:
    """Processor seconds of each mask of all answers from now on."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        Matcher.fill = self._timed(Matcher.fill)  # type: ignore[method-assign]

    def _timed(self, call: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any) -> None:
            began = time.thread_time()
            call(*args)
            self.seconds.append(time.thread_time() - began)

        return timed

    def told(self) -> str:
        """Their number, mean, 99th percentile and most, in milliseconds."""
        each = sorted(self.seconds) or [0.0]
        mean, late = sum(each) / len(each), each[int(0.99 * (len(each) - 1))]
        return (
            f"{len(each)} masks: mean {mean * 1000:.2f} ms, p99 {late * 1000:.2f} ms, most {each[-1] * 1000:.1f} ms"
            " of a processor"
        )


class Watch:
    """Of the steps that a grammar leaves a choice, by level, those that agree with the clean model's among it."""

    def __init__(self) -> None:
        self._counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._clean: Tensor | None = None
        answered, allowed = Seats._answered, Seats._allowed

        def remembered(seats: Seats, rows: int) -> Any:
            features, modulated = answered(seats, rows)
            self._clean = None if modulated is None else modulated.clean
            return features, modulated

        def watched(seats: Seats, scores: Tensor) -> Tensor:
            masked = allowed(seats, scores)
            if masked is not scores:
                self._count(seats, scores if self._clean is None else self._clean, masked)
            return masked

        Seats._answered, Seats._allowed = remembered, watched  # type: ignore[assignment, method-assign]

    def _count(self, seats: Seats, clean: Tensor, masked: Tensor) -> None:
        there = masked.isfinite()
        same = clean.masked_fill(~there, -torch.inf).argmax(1) == masked.argmax(1)
        for row, number in enumerate(seats._row_seats):
            seat = seats._taken.get(number)
            if seat is None or seat.matcher is None or row >= len(masked):
                continue
            free = bool(there[row].sum() > 1)
            self._counts[seat.level or 0].update(steps=1, free=free, agreed=free and bool(same[row]))

    def told(self) -> Iterator[str]:
        """A line a level."""
        for level, each in sorted(self._counts.items(), reverse=True):
            yield (
                f"level {level / 100}: {each['steps']} steps under a grammar, {each['free']} with a choice, of which"
                f" {each['agreed'] / max(1, each['free']):.3f} agree with the clean model's among what is allowed"
            )
