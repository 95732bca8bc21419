"""Pictures of many pixels, whatever their bytes: small ones do not wait for them."""

from __future__ import annotations

import asyncio
import io
import threading
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from deployments.engines.images.decoding import pixels_of
from deployments.queues.fair_pool import FairPool
from policies.terms import Share

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from deployments.serving.replicas import LARGE_PIXELS, VisionReplica


def jpeg(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "pixels"), [(jpeg(30), 900), (jpeg(30)[:-5], 900), (b"", 0), (b"no picture", 0), (jpeg(30)[:20], 0)]
)
def test_pixels_are_told_by_the_header_alone(data: bytes, pixels: int) -> None:
    assert pixels_of(data) == pixels


async def test_a_small_picture_is_decoded_while_large_ones_fill_their_threads() -> None:
    """In the gateway's place a replica without a model; its large pictures never end."""
    replica: Any = VisionReplica.__new__(VisionReplica)
    replica._max_pixels, gate = 25_000_000, threading.Event()
    replica.engine = SimpleNamespace(preprocess=lambda image: image.getpixel((0, 0)))
    small: FairPool[bytes, Any] = FairPool(replica._decoded_unless_large, workers=2, queue_bound=9)
    large: FairPool[bytes, Any] = FairPool(lambda _: gate.wait(), workers=1, queue_bound=9)
    huge = jpeg(int(LARGE_PIXELS**0.5) + 1)

    async def decoded(data: bytes) -> Any:
        return await small.submit(data, Share(flow="a")) or await large.submit(data, Share(flow="a"))

    waiting = [asyncio.create_task(decoded(huge)) for _ in range(4)]
    while len(large) < 3:
        await asyncio.sleep(0.01)
    assert await decoded(jpeg(30)) == ((30, 30), (0, 0, 0))
    gate.set()
    await asyncio.gather(*waiting)
    small.close()
    large.close()
