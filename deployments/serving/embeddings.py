"""The deployment of a model that makes embeddings: batches of many tenants' texts, fair by their tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from deployments.config import ModelSpec
from deployments.contracts.catalog import ModelInfo
from deployments.contracts.console import announced
from deployments.contracts.spending import Meter, Spending, Spent
from deployments.engines.text.embedder import Embedder
from deployments.prompts.encoder import Texts
from deployments.queues.batching import FairBatcher
from deployments.queues.fair_pool import FairPool
from deployments.queues.fair_queue import FlowBound
from deployments.serving.cores import Threads
from deployments.serving.replicas import ENCODED_AT_ONCE, LOWEST, PART_BYTES, device_of
from deployments.serving.store import StoreAccess
from deployments.serving.vitals import Vitals
from policies.errors import NotEntitled
from policies.terms import Modulation, Share
from tenants.reports import catalog

WAITING_BYTES = 2**24
"""Of one tenant's token ids."""
Queued = tuple[list[int], Meter]
"""A text's tokens, and what is told that they are in a forward."""


class EmbeddingReplica:
    """A shared model that makes embeddings. It has no levels: level 1.0 is all that it serves.

    Args:
        spec: the model.
        access: how to find the store, which is told once that there is the model.
        threads: how many CPU threads a forward has where this replica runs.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, spec: ModelSpec, access: StoreAccess, threads: Threads
    ) -> None:
        with announced(spec.id, spec.source):
            self.engine = await asyncio.to_thread(Embedder.load, spec, device_of(threads.count()))
            async with await access.connect() as store:
                await catalog.enter(store, spec.id, None, spec.aliases)
        form = self.engine.form
        self._info = ModelInfo(
            id=spec.id,
            aliases=spec.aliases,
            task=spec.task,
            classes=None,
            floor=LOWEST,  # a higher one would raise a tenant's level to it
            context=self.engine.context,
            form=form and form.digest,
            characters=self.engine.characters,
            dimensions=self.engine.dimensions,
            created=int(time.time()),
        )
        self._most_s, self._vitals, self._spending = spec.max_step_s, Vitals(self.engine.trial), Spending()
        self._batcher: FairBatcher[Queued, bytes] = FairBatcher(
            self._forward,
            max_batch_size=spec.max_batch_size,
            max_wait_ms=spec.max_batch_wait_ms,
            queue_bound=spec.max_queue_per_tenant,
        )
        self._bound = spec.max_queue_per_tenant
        self._under_way = FlowBound(spec.max_queue_per_tenant, WAITING_BYTES)
        self._rooms: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._encoding: FairPool[Texts, tuple[str, list[list[int]]]] = FairPool(
            lambda texts: self.engine.encoder.prompts(texts), workers=1, queue_bound=ENCODED_AT_ONCE
        )

    async def embed(
        self, prompts: list[list[int]], param: str, modulation: Modulation, share: Share, call: str = ""
    ) -> list[bytes]:
        """The embedding of each text, given as token ids: float32 numbers, little-endian.

        Args:
            param: the field that a refusal names.

        Raises:
            NotEntitled: terms below level 1.0, or with a focus.
            InvalidRequest: an id that is no token.
            Unavailable: this tenant has too many requests under way.
        """
        check_level(modulation)
        for ids in prompts:
            self.engine.encoder.checked(ids, param)
        # A request of many texts waits for its own, and those of its tenant for each other, before it queues more.
        room = self._rooms.setdefault(share.flow, asyncio.Semaphore(self._bound))

        async def one(ids: list[int]) -> bytes:
            async with room:
                return await self._batcher.submit((ids, meter), share, float(len(ids)))

        with self._under_way.hold(share.flow, 4 * sum(map(len, prompts))), self._spending.of(call) as meter:
            tasks = [asyncio.create_task(one(ids)) for ids in prompts]
            try:
                with self._vitals.watched():
                    return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def info(self) -> ModelInfo:
        """What the gateway needs to know of this model."""
        return self._info

    async def spent(self, call: str) -> Spent | None:
        """What one of this replica's calls had used that was cut short."""
        return await self._spending.spent(call)

    async def form(self) -> AsyncIterator[bytes]:
        """In parts, what makes texts into tokens: `Form.pack`. Gateways ask for it by `info`'s digest."""
        form = self.engine.form
        packed = await asyncio.to_thread(form.pack) if form else b""
        for at in range(0, len(packed), PART_BYTES):
            yield packed[at : at + PART_BYTES]

    async def encode(self, texts: Texts, share: Share) -> list[list[int]]:
        """Token ids of each text, for a gateway that has not got the tokenizer. Raises as `TextReplica.encode`."""
        _, prompts = await self._encoding.submit(texts, share)
        return prompts

    async def check_health(self) -> None:
        """Raises RuntimeError where forwards fail or hang, so that Serve replaces the replica."""
        self._batcher.check(self._most_s)
        await self._vitals.check(self._batcher.alone)

    def _forward(self, items: list[Queued]) -> list[bytes]:
        for ids, meter in items:
            meter.read(ids, len(ids))
        return self.engine.embed([ids for ids, _ in items])


def check_level(modulation: Modulation) -> None:
    """Fail closed: no noise is defined for an embedding. Raises NotEntitled."""
    if modulation.utility < 1.0 or modulation.focus:
        raise NotEntitled("An embedding has no level below 1.0, and no focus.", code="embedding_level")
