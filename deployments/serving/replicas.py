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
from deployments.contracts.spending import Spending, Spent
from deployments.engines.calibrated import CalibratedEngine
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.pipeline import Pipeline
from deployments.engines.images.segmenter import ImageSegmenter
from deployments.engines.text.choices import answer
from deployments.engines.text.generator import Generator
from deployments.engines.text.pacing import PACE_S, WHOLE, paced
from deployments.prompts.encoder import Conversation, Texts
from deployments.queues.fair_pool import FairPool
from deployments.serving.cores import Threads, usable_cores
from deployments.serving.metrics import LevelMetrics
from deployments.serving.store import StoreAccess
from deployments.serving.vitals import Vitals
from deployments.upkeep.keeper import Keeper
from policies.terms import Modulation, Share

LOWEST = 0.01
"""The lowest level that there is."""
ENCODED_AT_ONCE = 16
"""Prompts of one tenant that wait to be encoded."""
PART_BYTES = 2**20
"""Of a tokenizer on its way to a gateway: Serve takes no message of more than 4 MiB."""


class Replica:
    """What replicas of images and of text have in common: calibration, what they tell of themselves, the audit."""

    engine: CalibratedEngine

    async def start(
        self,
        engine: CalibratedEngine,
        spec: ModelSpec,
        access: StoreAccess,
        threads: int,
        **of_text: Any,
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
            id=spec.id,
            aliases=spec.aliases,
            task=spec.task,
            classes=classes,
            floor=LOWEST,
            created=int(time.time()),
            **of_text,
        )
        self._metrics = LevelMetrics(spec.id)
        self._spending = Spending()

    async def spent(self, call: str) -> Spent | None:
        """What one of this replica's calls had used that was cut short."""
        return await self._spending.spent(call)

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


def device_of(threads: int) -> torch.device:
    """Where a replica computes; sets how many threads a CPU has for it."""
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
                kind.load, spec, device_of(threads.count())
            )
            await self.start(self.engine, spec, access, threads.count())
        self._pictures = Pipeline(self.engine, usable_cores())
        self._most_s, self._vitals = spec.max_step_s, Vitals(self.engine.trial)

    async def predict(
        self,
        data: bytes,
        top_k: int | None,
        form: str,
        max_pixels: int,
        modulation: Modulation,
        share: Share,
        call: str = "",
    ) -> Any:
        """Classify or segment one encoded image at a tenant's terms, in a batch shared with others.

        Args:
            data: the image file.
            top_k: of a classification, most labels; None: as many as the terms disclose.
            form: of a segmentation, `masks`, `labelmap` or `rle`.
            max_pixels: largest image that is decoded.

        Raises:
            InvalidRequest: not an image, or a focus on an unknown class.
            PayloadTooLarge: an image of too many pixels.
            Unavailable: this tenant's queue is full, or the levels of the model are not solved yet.
        """
        held = self.engine.prepare(modulation)  # held until the answer is there: no other level displaces it

        with self._pictures.under_way.hold(share.lane, len(data)), self._spending.of(call) as meter:
            for building in held:
                await asyncio.wrap_future(building) if not building.done() else building.result()
            with self._vitals.watched():
                size, item = await self._pictures.read(data, max_pixels, modulation, share, meter, top_k)
                if isinstance(self.engine, ImageClassifier):
                    return [label.to_json() for label in item]
                read = {"labelmap": self._map, "rle": self._runs}.get(form, self._masks)
                return await self._pictures.answered(partial(read, self.engine, item, modulation, size), size, share)

    @staticmethod
    def _masks(engine: ImageSegmenter, item: Any, modulation: Modulation, size: tuple[int, int]) -> Any:
        return [part.to_json() for part in engine.answer(item, modulation, size)]

    @staticmethod
    def _runs(engine: ImageSegmenter, item: Any, modulation: Modulation, size: tuple[int, int]) -> Any:
        return [part.to_json() for part in engine.runs(item, modulation, size)]

    @staticmethod
    def _map(engine: ImageSegmenter, item: Any, modulation: Modulation, size: tuple[int, int]) -> Any:
        return engine.label_map(item, modulation, size).to_json()

    async def check_health(self) -> None:
        """Called by Serve every few seconds; also the clock of the audit's export.

        Raises:
            RuntimeError: forwards fail or hang, or a task of the replica has ended.
        """
        self._pictures.batcher.check(self._most_s)
        await self._vitals.check(self._pictures.batcher.alone)
        self.check_and_export()


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
            self.engine = await asyncio.to_thread(Generator.load, spec, device_of(threads.count()), _gpu_share(), say)
            model = self.engine.language_model
            form, characters, _ = await asyncio.to_thread(lambda: (model.form, model.characters, model.encoder))
            of_text = {"context": self.engine.context, "form": form and form.digest, "characters": characters}
            of_text["tools"] = self.engine.tools
            await self.start(self.engine, spec, access, threads.count(), **of_text)
        self._most_s = spec.max_step_s
        # What is encoded is not admitted yet: it gets a thread, and each tenant its part of it.
        self._encoding: FairPool[Conversation | Texts, tuple[str, list[list[int]]]] = FairPool(
            lambda prompt: model.encoder.prompts(prompt), workers=1, queue_bound=ENCODED_AT_ONCE
        )

    async def generate(
        self,
        prompts: list[list[int]],
        param: str,
        params: dict[str, Any],
        modulation: Modulation,
        share: Share,
        call: str = "",
    ) -> AsyncIterator[TextDelta]:
        """Answer prompts, which are token ids, at a tenant's terms. Closing the iterator frees the slots.

        Args:
            params: as `choices.answer`, and whether the answers are wanted `whole`: each as one piece, at its end.

        Raises:
            InvalidRequest, NotEntitled, Unavailable: as `choices.answer`.
        """
        with self._spending.of(call) as meter:
            given = dict(params)
            pace_s = WHOLE if given.pop("whole", False) else PACE_S
            answers = answer(self.engine, prompts, given, modulation, share, param=param, meter=meter)
            async with aclosing(answers) as deltas, aclosing(paced(deltas, pace_s)) as pieces:
                async for piece in pieces:
                    yield piece

    async def form(self) -> AsyncIterator[bytes]:
        """In parts, what makes prompts into tokens: `Form.pack`. Gateways ask for it by `info`'s digest."""
        form = self.engine.language_model.form
        packed = await asyncio.to_thread(form.pack) if form else b""
        for at in range(0, len(packed), PART_BYTES):
            yield packed[at : at + PART_BYTES]

    async def encode(self, prompt: Conversation | Texts, share: Share) -> list[list[int]]:
        """Token ids of a conversation, or of each text, for a gateway that has not got the tokenizer.

        Raises:
            InvalidRequest: as `Encoder.prompts`.
            Unavailable: this tenant has many waiting already.
        """
        _, prompts = await self._encoding.submit(prompt, share)
        return prompts

    async def check_health(self) -> None:
        """Raises where the engine's loop has stopped or hangs, so that Serve replaces the replica."""
        self.engine.healthy(self._most_s)
        self.check_and_export()

    def __del__(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()
