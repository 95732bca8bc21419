"""The application with a text model that costs nothing, so that a load measures tenancy and not arithmetic."""

# No postponed annotations here: Serve reads the type of build_app's argument to parse the YAML into it.

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.serve import Application

from deployments.app import WAITING_IN_FAIR_QUEUE
from deployments.config import AppArgs, ModelSpec, Task
from deployments.contracts.catalog import ModelInfo, TextDelta
from deployments.serving.cores import Threads
from deployments.serving.ingress import TenantGateway
from deployments.serving.replicas import VisionReplica
from deployments.serving.store import StoreAccess
from policies.terms import Modulation, Share

STEP_S = 0.002


class CountingText:
    """Answers `max_tokens` words, one a step, to a text of as many tokens as it has words."""

    def __init__(self, spec: ModelSpec) -> None:
        self._info = ModelInfo(
            id=spec.id, task=Task.TEXT, classes=None, floor=0.01, context=4096, created=int(time.time())
        )

    def info(self) -> ModelInfo:
        """What the gateway needs to know of this model."""
        return self._info

    async def encode(self, prompt: list[str], share: Share) -> list[list[int]]:
        """As `TextReplica.encode`."""
        return [[0] * len(text.split()) for text in prompt]

    async def generate(
        self,
        prompts: list[list[int]],
        param: str,
        params: dict[str, Any],
        modulation: Modulation,
        share: Share,
        call: str = "",
    ) -> AsyncIterator[TextDelta]:
        """As `TextReplica.generate`, of one text."""
        last = params["max_tokens"]
        for step in range(1, last + 1):
            await asyncio.sleep(STEP_S)
            yield TextDelta(
                text="word ",
                tokens=1,
                finish_reason="length" if step == last else None,
                prompt_tokens=sum(map(len, prompts)),
                completion_tokens=step,
            )


def build_app(args: AppArgs) -> Application:
    """As `deployments.app.build_app`, with an external store and `CountingText` for text."""
    access = StoreAccess(None, args.store)
    models = {spec.id: _model(spec, access) for spec in args.models}
    gateway = serve.deployment(TenantGateway).options(
        num_replicas=args.gateway.scaling.num_replicas,
        max_ongoing_requests=WAITING_IN_FAIR_QUEUE,
        ray_actor_options={"num_cpus": 0.1},
    )
    return gateway.bind(args, models, access)


def _model(spec: ModelSpec, access: StoreAccess) -> Application:
    options: dict[str, Any] = {
        "name": spec.id,
        "max_ongoing_requests": WAITING_IN_FAIR_QUEUE,
        "ray_actor_options": {"num_cpus": 0.1},
    }
    if spec.task is Task.TEXT:
        return serve.deployment(CountingText).options(**options).bind(spec)
    return serve.deployment(VisionReplica).options(**options).bind(spec, access, Threads(1, 1))
