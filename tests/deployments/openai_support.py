"""A gateway whose engine is a script, for the tests of OpenAI's API."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from deployments.config import GatewayArgs, Task
from deployments.contracts.catalog import ModelInfo, TextDelta, TokenLogprob
from deployments.gateway.settings import Settings
from policies.errors import Unavailable
from policies.terms import Share, Tier

MODEL = ModelInfo(id="text", task=Task.TEXT, classes=None, floor=0.1, context=1000, created=1)
EMBEDDER = ModelInfo(id="embed", task=Task.EMBEDDING, classes=None, floor=0.01, context=1000, dimensions=2, created=1)
QUESTION: list[Any] = [{"role": "user", "content": "Hi"}]
LOGPROBS = (
    TokenLogprob("Hel", -0.5, (("Hel", -0.5), ("Hol", -1.5)), 0),
    TokenLogprob("lo", -0.25, (("lo", -0.25),), 3),
)


class Script:
    """A gateway and its engine in one: says `Hello <index>`, or what it is given, and remembers what it was asked."""

    def __init__(self) -> None:
        self.settings = Settings(GatewayArgs())
        self.tier = Tier(name="gold", utility=1.0)
        self.costs: list[int] = []
        self.asked: list[tuple[Any, dict[str, Any]]] = []
        self.settled: dict[str, int] = {}
        self.encoded: list[Any] = []
        self.released = 0
        self.short = 0
        self.broken: list[Exception] = []
        self.fails = False
        self.model = MODEL
        self.standing: dict[str, dict[str, float]] = {}
        self.said: list[str] = []
        """Pieces that an answer has in place of its greeting."""
        self.reads: asyncio.Event | None = None
        self.pause_s = 0.0

    async def authenticate(self, context: Any, api_key: str) -> Any:
        context.entitlements = SimpleNamespace(
            tenant="own", tier=self.tier, show_cost=False, share=lambda: Share(flow="own"), focus=self.standing.get
        )
        return context.entitlements

    def entitle(self, entitlements: Any, model_id: str) -> ModelInfo:
        return EMBEDDER if model_id == EMBEDDER.id else self.model

    def models_for(self, entitlements: Any) -> list[ModelInfo]:
        return [self.model]

    async def encode(self, context: Any, info: ModelInfo, prompt: Any) -> list[list[int]]:
        """Tokens of four characters."""
        self.encoded.append(prompt)
        texts = [str(prompt)] if isinstance(prompt[0], dict) else prompt
        return [text if isinstance(text, list) else list(range(len(text) // 4 + 1)) for text in texts]

    @asynccontextmanager
    async def admit(self, context: Any, model_id: str, cost: Any, **terms: Any) -> AsyncIterator[Any]:
        self.costs.append(cost.tokens.most)
        try:
            lease = SimpleNamespace(settle=self.settled.update, short=self.short, broke=self.broken.append)
            deadline = asyncio.get_running_loop().time() + 120
            yield SimpleNamespace(stream=self.stream, call=self.call, lease=lease, deadline=deadline)
        finally:
            self.released += 1

    async def call(self, method: str, prompts: list[list[int]], field: str) -> list[bytes]:
        """Of each text its number of tokens, and one."""
        return [array("f", [len(ids), 1.0]).tobytes() for ids in prompts]

    async def stream(
        self, method: str, prompts: list[list[int]], field: str, params: dict[str, Any]
    ) -> AsyncGenerator[TextDelta]:
        self.asked.append((self.encoded[-1], params))
        count = params["n"] * len(prompts)
        told = params["logprobs"] is not None
        if self.reads is not None:
            yield TextDelta("", 0, None, 5, 0)
            self.reads.set()
            if self.fails:
                raise Unavailable("The text engine has stopped.", code="engine_stopped")
            await asyncio.sleep(60)
        await asyncio.sleep(self.pause_s)
        for at, piece in enumerate(self.said):
            reason = "stop" if at == len(self.said) - 1 else None
            yield TextDelta(piece, 1, reason, 7, at + 1)
        for index in range(0 if self.said else count):
            yield TextDelta("Hello", 2, None, 7, 2, index, LOGPROBS if told else ())
            if self.fails:
                raise Unavailable("The text engine has stopped.", code="engine_stopped")
        await asyncio.sleep(self.pause_s)
        for index in range(0 if self.said else count):
            yield TextDelta(f" {index}", 1, "length" if index else "stop", 7, 3, index)
