"""A picture's way through a replica: encoded in a fair queue, decoded ahead, in a batch with others, then answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from torch import Tensor

from deployments.contracts.spending import Meter
from deployments.engines.images.decoding import decode_image
from deployments.engines.images.engine import VisionEngine
from deployments.engines.images.headers import pixels
from deployments.queues.batching import FairBatcher
from deployments.queues.fair_queue import FlowBound
from deployments.queues.room import Room
from deployments.queues.two_speeds import TwoSpeeds
from policies.terms import Modulation, Share

MOST_DECODED_AT_ONCE = 4
AHEAD = 4
"""Batches' worth of pictures that are decoded or being decoded, what is at work included; of one tenant half of it."""
AHEAD_BYTES = 256 * 2**20
"""Of decoded pictures; each thread that decodes may go beyond it by one."""
WAITING_BYTES = 128 * 2**20
"""Of one tenant's encoded pictures."""
_S_PER_PIXEL, _ANSWER_S_PER_PIXEL = 2e-8, 1e-7
Answer = TypeVar("Answer")
Picture = tuple[bytes, int]
"""A file, and the most pixels that are decoded of it."""
Decoded = tuple[tuple[int, int], Tensor]
"""A picture's (height, width), and its pixels as the model takes them."""
Queued = tuple[Tensor, Modulation, str, Meter, int | None]
"""A picture's pixels, its terms, its tenant, what is told that it is in a forward, and most labels wanted."""


class Pipeline:
    """Pictures of many tenants through one engine.

    Args:
        engine: it belongs to the pipeline's thread while that runs.
        cores: that there are to decode with.

    Attributes:
        under_way: what one tenant may have here, from the first byte to the answer.
        rooms: what is decoded, of small pictures and of large ones.
    """

    def __init__(self, engine: VisionEngine, cores: int) -> None:
        spec = engine.spec
        self._engine = engine
        self.under_way = FlowBound(spec.max_queue_per_tenant, WAITING_BYTES)
        workers = min(MOST_DECODED_AT_ONCE, cores)
        self._decoding: TwoSpeeds[Picture, Decoded] = TwoSpeeds(
            self._decoded,
            cost=lambda picture: pixels(picture[0]) * _S_PER_PIXEL,
            workers=workers,
            queue_bound=spec.max_queue_per_tenant,
            room=lambda: Room(AHEAD * spec.max_batch_size, AHEAD_BYTES // 2),
            size=lambda decoded: decoded[1].nbytes,
        )
        self.rooms = self._decoding.rooms
        self._answering: TwoSpeeds[tuple[Callable[[], object], int], object] = TwoSpeeds(
            lambda asked: asked[0](),
            cost=lambda asked: asked[1] * _ANSWER_S_PER_PIXEL,
            workers=workers,
            queue_bound=spec.max_queue_per_tenant,
        )
        self._to_decode = 0
        self.batcher: FairBatcher[Queued, Any] = FairBatcher(
            self._forward,
            max_batch_size=spec.max_batch_size,
            max_wait_ms=spec.max_batch_wait_ms,
            queue_bound=spec.max_queue_per_tenant,
            coming=lambda: self._to_decode,
        )

    async def read(
        self,
        data: bytes,
        max_pixels: int,
        modulation: Modulation,
        share: Share,
        meter: Meter | None = None,
        top_k: int | None = None,
    ) -> tuple[tuple[int, int], Any]:
        """A picture's (height, width), and what the engine reads of it at a tenant's terms: labels, or a map's logits.

        Args:
            meter: is told when it is in a forward.
            top_k: most labels wanted.

        Raises:
            InvalidRequest: not a picture.
            PayloadTooLarge: one of more pixels than that.
            Unavailable: this tenant has too many under way.
        """
        queued = (modulation, share.flow, meter or Meter(), top_k)
        async with self._decoded_one((data, max_pixels), share) as (size, image):
            return size, await self.batcher.submit((image, *queued), share)

    @asynccontextmanager
    async def _decoded_one(self, picture: Picture, share: Share) -> AsyncIterator[Decoded]:
        """A picture's pixels, held within; until they are there a batch may wait for them."""
        self._to_decode += 1
        waited = True
        try:
            async with self._decoding.lent(picture, share) as decoded:
                self._to_decode, waited = self._to_decode - 1, False
                yield decoded
        finally:
            self._to_decode -= waited

    async def answered(self, read: Callable[[], Answer], size: tuple[int, int], share: Share) -> Answer:
        """What is read of a picture's logits at its own (height, width), fair between tenants as decoding is.

        Raises:
            Unavailable: this tenant has too many under way.
        """
        return await self._answering.submit((read, size[0] * size[1]), share)  # type: ignore[return-value]

    async def aclose(self) -> None:
        """End the threads; what waits is cancelled."""
        self._decoding.close()
        self._answering.close()
        await self.batcher.aclose()

    def _decoded(self, picture: Picture) -> Decoded:
        image = decode_image(*picture)
        return (image.height, image.width), self._engine.preprocess(image)

    def _forward(self, items: list[Queued]) -> Any:
        images, modulations, flows, meters, top_k = zip(*items, strict=True)
        for meter in meters:
            meter.images = 1
        return self._engine.readout(self._engine.forward(images, modulations, flows), modulations, top_k)
