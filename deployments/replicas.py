"""The model deployments: thin shells that give an engine its calibration, fair batches, audit metrics and health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import torch
from ray.util.metrics import Gauge

from deployments.batching import FairBatcher
from deployments.calibrating import Engine, install_calibration
from deployments.catalog import ModelInfo, TextDelta
from deployments.config import ModelSpec, Task
from deployments.console import announced
from deployments.engines.choices import Conversation, Texts, answer, encoded
from deployments.engines.classifier import ImageClassifier
from deployments.engines.generator import Generator
from deployments.engines.images import decode_image
from deployments.engines.segmenter import ImageSegmenter
from deployments.engines.vision import ItemLogits
from deployments.fair_queue import FlowBound
from deployments.store import StoreAccess
from policies.terms import Modulation, Share


class AuditMetrics:
    """What was sold against what was delivered, exported per (model, level) to Ray's Prometheus endpoint."""

    def __init__(self, model_id: str) -> None:
        tags = ("model", "level")
        self._rows = Gauge("aim_audit_rows", "Rows answered (images, pixels, decoding steps).", tag_keys=tags)
        self._agreed = Gauge("aim_audit_agreement", "Share of rows whose answer after utility is clean.", tag_keys=tags)
        self._model = model_id

    def export(self, audit: dict[float, tuple[int, int]]) -> None:
        """Set the gauges to an engine's counts since start."""
        for level, (rows, agreed) in audit.items():
            tags = {"model": self._model, "level": f"{level:g}"}
            self._rows.set(rows, tags)
            self._agreed.set(agreed / max(1, rows), tags)


async def _start(engine: Engine, spec: ModelSpec, access: StoreAccess, context: int | None = None) -> ModelInfo:
    await install_calibration(engine, spec, access)
    classes = None if spec.task is Task.TEXT else tuple(getattr(engine, "classes", ()))
    return ModelInfo(
        id=spec.id, task=spec.task, classes=classes, floor=engine.floor, context=context, created=int(time.time())
    )


def _device(threads: int) -> torch.device:
    # Ray sets OMP_NUM_THREADS to a replica's num_cpus, which is a share for placement, not for arithmetic.
    torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class VisionReplica:
    """A shared image classifier or segmenter.

    Args:
        spec: the model.
        access: how to find the store, used at the start only.
        threads: CPU threads of a forward.
        max_pixels: largest image decoded, in pixels.
    """

    async def __init__(self, spec: ModelSpec, access: StoreAccess, threads: int, max_pixels: int) -> None:
        kind = ImageClassifier if spec.task is Task.CLASSIFICATION else ImageSegmenter
        with announced(spec.id, spec.source):
            self.engine: ImageClassifier | ImageSegmenter = await asyncio.to_thread(kind.load, spec, _device(threads))
            self._info = await _start(self.engine, spec, access)
        self._max_pixels = max_pixels
        self._under_way = FlowBound(spec.max_queue_per_tenant)
        self._metrics = AuditMetrics(spec.id)
        self._batcher: FairBatcher[tuple[torch.Tensor, Modulation], ItemLogits] = FairBatcher(
            self._forward,
            max_batch_size=spec.max_batch_size,
            max_wait_ms=spec.max_batch_wait_ms,
            queue_bound=spec.max_queue_per_tenant,
        )

    def info(self) -> ModelInfo:
        """What the gateway needs to know of this model."""
        return self._info

    async def predict(
        self, data: bytes, top_k: int | None, modulation: Modulation, share: Share
    ) -> list[dict[str, str | float]]:
        """Classify or segment one encoded image at a tenant's terms, in a batch shared with others.

        Raises:
            InvalidRequest: not an image, or a focus on an unknown class.
            PayloadTooLarge: an image of too many pixels.
            Unavailable: this tenant's queue is full.
        """

        def read() -> tuple[tuple[int, int], torch.Tensor]:
            image = decode_image(data, self._max_pixels)
            self.engine.prepare(modulation)
            return (image.height, image.width), self.engine.preprocess(image)

        with self._under_way.hold(share.flow):
            size, pixels = await asyncio.to_thread(read)
            item = await self._batcher.submit((pixels, modulation), share)
            answer: list[Any]
            if isinstance(self.engine, ImageClassifier):
                answer = self.engine.answer(item, modulation, top_k)
            else:
                answer = await asyncio.to_thread(self.engine.answer, item, modulation, size)
        return [part.to_json() for part in answer]

    def audit(self) -> dict[float, tuple[int, int]]:
        """By level: rows answered, and rows whose answer after utility is the clean one."""
        return self.engine.audit()

    async def check_health(self) -> None:
        """Called by Serve every few seconds; also the clock of the audit's export."""
        self._batcher.check()
        self._metrics.export(self.engine.audit())

    def _forward(self, items: list[tuple[torch.Tensor, Modulation]]) -> list[ItemLogits]:
        pixels, modulations = zip(*items, strict=True)
        return self.engine.forward(pixels, modulations)


class TextReplica:
    """A shared language model on continuous batching.

    Args:
        spec: the model.
        access: how to find the store, used at the start only.
        threads: CPU threads of a forward.
    """

    async def __init__(self, spec: ModelSpec, access: StoreAccess, threads: int) -> None:
        with announced(spec.id, spec.source):
            self.engine = await asyncio.to_thread(Generator.load, spec, _device(threads))
            self._info = await _start(self.engine, spec, access, self.engine.context)
        self._metrics = AuditMetrics(spec.id)

    def info(self) -> ModelInfo:
        """What the gateway needs to know of this model."""
        return self._info

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

    async def count(self, prompt: Conversation | Texts) -> list[int]:
        """Tokens of a conversation, or of each text.

        Raises:
            InvalidRequest: as `choices.encoded`.
        """
        _, prompts = await asyncio.to_thread(encoded, self.engine, prompt)
        return [len(tokens) for tokens in prompts]

    def audit(self) -> dict[float, tuple[int, int]]:
        """By level: decoding steps, and steps whose greedy token after utility is the clean one."""
        return self.engine.audit()

    async def check_health(self) -> None:
        """Raises where the engine's loop has stopped, so that Serve restarts the replica."""
        self.engine.healthy()
        self._metrics.export(self.engine.audit())

    def __del__(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()
