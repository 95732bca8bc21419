"""The model deployments: thin shells that give an engine its calibration, fair batches, audit metrics and health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

import ray
import torch
from ray import serve

from deployments.config import ModelSpec, Task
from deployments.contracts.catalog import ModelInfo, TextDelta
from deployments.contracts.console import announce, announced
from deployments.engines.calibrated import CalibratedEngine
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.decoding import decode_image
from deployments.engines.images.items import ItemLogits
from deployments.engines.images.segmenter import ImageSegmenter
from deployments.engines.text.choices import Conversation, Texts, answer, encoded
from deployments.engines.text.generator import Generator
from deployments.queues.batching import FairBatcher
from deployments.queues.fair_pool import FairPool
from deployments.queues.fair_queue import FlowBound
from deployments.serving.cores import Threads, usable_cores
from deployments.serving.metrics import LevelMetrics
from deployments.serving.store import StoreAccess
from deployments.serving.vitals import Vitals
from deployments.upkeep.keeper import Keeper
from policies.terms import Modulation, Share

LOWEST = 0.01
"""The lowest level that there is."""
MOST_DECODED_AT_ONCE = 4
Decoded = tuple[tuple[int, int], torch.Tensor]
"""A picture's (height, width), and its pixels as the model takes them."""
COUNTED_AT_ONCE = 16
"""Long prompts of one tenant whose tokens wait to be counted."""


class Replica:
    """What replicas of images and of text have in common: calibration, what they tell of themselves, the audit."""

    engine: CalibratedEngine

    async def start(
        self,
        engine: CalibratedEngine,
        spec: ModelSpec,
        access: StoreAccess,
        threads: int,
        context: int | None = None,
    ) -> None:
        """Put the stored calibration in place, and keep it and the audit up to date from now on."""
        replica = serve.get_replica_context().replica_id.unique_id
        # The calibrator holds the model a second time: as large a share again, or what whole cards have free.
        self._keeper = await Keeper.start(
            engine, spec, access, replica=replica, threads=threads, gpu_share=_gpu_share()
        )
        if not engine.calibrated:
            announce(spec.id, "level 1.0 is served; lower levels are about to be solved")
        classes = None if spec.task is Task.TEXT else tuple(getattr(engine, "classes", ()))
        self._info = ModelInfo(
            id=spec.id, task=spec.task, classes=classes, floor=LOWEST, context=context, created=int(time.time())
        )
        self._metrics = LevelMetrics(spec.id)

    def info(self) -> ModelInfo:
        """What the gateway needs to know of this model; a refit can move its floor.

        Before the levels are solved no floor is known, and none raises a tenant's level.
        """
        pending = self._keeper.pending
        return self._info.model_copy(update={"floor": LOWEST if pending else self.engine.floor, "pending": pending})

    def audit(self) -> dict[float, tuple[int, int]]:
        """By level: rows judged (images, some pixels, decoding steps), and rows whose answer after utility is clean."""
        return self.engine.audit()

    def check_and_export(self) -> None:
        """Check the keeper, and bring the gauges up to date."""
        self._keeper.check()
        self._metrics.export(self.engine.audit(), self.engine.reports())


def _device(threads: int) -> torch.device:
    # Ray sets OMP_NUM_THREADS to a replica's num_cpus, which is a share for placement, not for arithmetic.
    torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _gpu_share() -> float:
    """The share of one card that Ray has given this replica; 0: whole cards, or none."""
    given: float = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
    return given if given < 1 else 0.0


class VisionReplica(Replica):
    """A shared image classifier or segmenter.

    Args:
        spec: the model.
        access: how to find the store; requests never wait for it.
        threads: how many CPU threads a forward has where this replica runs.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, spec: ModelSpec, access: StoreAccess, threads: Threads
    ) -> None:
        kind = ImageClassifier if spec.task is Task.CLASSIFICATION else ImageSegmenter
        with announced(spec.id, spec.source):
            self.engine: ImageClassifier | ImageSegmenter = await asyncio.to_thread(
                kind.load, spec, _device(threads.count())
            )
            await self.start(self.engine, spec, access, threads.count())
        self._most_s, self._vitals = spec.max_step_s, Vitals(self.engine.trial)
        self._under_way = FlowBound(spec.max_queue_per_tenant)
        self._decoding: FairPool[tuple[bytes, int], Decoded] = FairPool(
            self._decoded, workers=min(MOST_DECODED_AT_ONCE, usable_cores()), queue_bound=spec.max_queue_per_tenant
        )
        self._batcher: FairBatcher[tuple[torch.Tensor, Modulation, str], ItemLogits] = FairBatcher(
            self._forward,
            max_batch_size=spec.max_batch_size,
            max_wait_ms=spec.max_batch_wait_ms,
            queue_bound=spec.max_queue_per_tenant,
        )

    async def predict(
        self, data: bytes, top_k: int | None, max_pixels: int, modulation: Modulation, share: Share
    ) -> list[dict[str, str | float | None]]:
        """Classify or segment one encoded image at a tenant's terms, in a batch shared with others.

        Args:
            data: the image file.
            top_k: most labels; None: as many as the terms disclose.
            max_pixels: largest image that is decoded.

        Raises:
            InvalidRequest: not an image, or a focus on an unknown class.
            PayloadTooLarge: an image of too many pixels.
            Unavailable: this tenant's queue is full, or the levels of the model are not solved yet.
        """
        held = self.engine.prepare(modulation)  # held until the answer is there: no other level displaces it

        with self._under_way.hold(share.flow):
            await asyncio.gather(*map(asyncio.wrap_future, held))
            size, pixels = await self._decoding.submit((data, max_pixels), share)
            answer: list[Any]
            with self._vitals.watched():
                item = await self._batcher.submit((pixels, modulation, share.flow), share)
                if isinstance(self.engine, ImageClassifier):
                    answer = self.engine.answer(item, modulation, top_k)
                else:
                    answer = await asyncio.to_thread(self.engine.answer, item, modulation, size)
        return [part.to_json() for part in answer]

    def _decoded(self, picture: tuple[bytes, int]) -> Decoded:
        """The (height, width) and pixels for the model of a picture of so many pixels at most."""
        image = decode_image(*picture)
        return (image.height, image.width), self.engine.preprocess(image)

    async def check_health(self) -> None:
        """Called by Serve every few seconds; also the clock of the audit's export.

        Raises:
            RuntimeError: forwards fail or hang, or a task of the replica has ended.
        """
        self._batcher.check(self._most_s)
        await self._vitals.check(self._batcher.alone)
        self.check_and_export()

    def _forward(self, items: list[tuple[torch.Tensor, Modulation, str]]) -> list[ItemLogits]:
        return self.engine.forward(*zip(*items, strict=True))


class TextReplica(Replica):
    """A shared language model on continuous batching.

    Args:
        spec: the model.
        access: how to find the store; requests never wait for it.
        threads: how many CPU threads a forward has where this replica runs.
    """

    engine: Generator

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, spec: ModelSpec, access: StoreAccess, threads: Threads
    ) -> None:
        with announced(spec.id, spec.source):
            say = partial(announce, spec.id)
            self.engine = await asyncio.to_thread(Generator.load, spec, _device(threads.count()), _gpu_share(), say)
            await self.start(self.engine, spec, access, threads.count(), self.engine.context)
        self._most_s = spec.max_step_s
        # What is counted is not admitted yet: it gets a thread, and each tenant its part of it.
        self._counting: FairPool[Conversation | Texts, tuple[str, list[list[int]]]] = FairPool(
            partial(encoded, self.engine), workers=1, queue_bound=COUNTED_AT_ONCE
        )

    async def generate(
        self, prompt: Conversation | Texts, params: dict[str, Any], modulation: Modulation, share: Share
    ) -> AsyncIterator[TextDelta]:
        """Answer a conversation, or texts to continue, at a tenant's terms. Closing the iterator frees the slots.

        Raises:
            InvalidRequest, NotEntitled, Unavailable: as `choices.answer`.
        """
        async with aclosing(answer(self.engine, prompt, params, modulation, share)) as deltas:
            async for delta in deltas:
                yield delta

    async def count(self, prompt: Conversation | Texts, share: Share) -> list[int]:
        """Tokens of a conversation, or of each text.

        Raises:
            InvalidRequest: as `choices.encoded`.
            Unavailable: this tenant has many counted already.
        """
        _, prompts = await self._counting.submit(prompt, share)
        return [len(tokens) for tokens in prompts]

    async def check_health(self) -> None:
        """Raises where the engine's loop has stopped or hangs, so that Serve replaces the replica."""
        self.engine.healthy(self._most_s)
        self.check_and_export()

    def __del__(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()
