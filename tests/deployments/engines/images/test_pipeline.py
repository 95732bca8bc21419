"""Pictures on their way through a replica: how far decoding runs ahead, and who waits for whom."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
import torch
from PIL import Image

from deployments.config import ModelSpec, Task
from deployments.engines.images import pipeline as module
from deployments.engines.images.pipeline import Pipeline
from policies.errors import InvalidRequest, Unavailable
from policies.terms import Modulation, Share

BATCH = 2


def picture(width: int = 8, height: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


MOST = 10_000_000


class Engine:
    """A picture as it is, and whose it was; forwards wait for the gate."""

    def __init__(self) -> None:
        self.spec = ModelSpec(
            id="m", task=Task.CLASSIFICATION, source="nowhere", max_batch_size=BATCH, max_queue_per_tenant=50
        )
        self.gate, self.decoded, self.batches = threading.Event(), 0, list[list[str]]()

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        self.decoded += 1
        return torch.zeros(3, image.height, image.width)

    def forward(self, pixels: Sequence[torch.Tensor], modulations: Sequence[Any], flows: Sequence[str]) -> list[str]:
        self.gate.wait()
        self.batches.append(list(flows))
        return list(flows)

    def readout(self, items: list[str], modulations: Sequence[Any], top_k: Sequence[int | None]) -> list[str]:
        return items


Parts = tuple[Engine, Pipeline]


@pytest_asyncio.fixture
async def parts() -> AsyncIterator[Parts]:
    engine = Engine()
    pipeline = Pipeline(engine, cores=2)  # type: ignore[arg-type]
    yield engine, pipeline
    engine.gate.set()
    await pipeline.aclose()


async def come(pipeline: Pipeline, flow: str, *pictures: bytes) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(pipeline.read(data, MOST, Modulation(), Share(flow=flow))) for data in pictures]
    await asyncio.sleep(0)
    return tasks


async def rested(pipeline: Pipeline) -> None:
    while pipeline._decoding._short._running:
        await asyncio.gather(*pipeline._decoding._short._running)


async def test_pictures_are_decoded_two_batches_ahead_and_another_tenants_at_once(parts: Parts) -> None:
    engine, pipeline = parts
    tasks = await come(pipeline, "flood", *[picture()] * 40)
    await rested(pipeline)
    assert engine.decoded == 2 * BATCH, "the batch at work, and the next"
    tasks += await come(pipeline, "quiet", picture())
    await rested(pipeline)
    assert engine.decoded == 2 * BATCH + 1
    for _ in range(50):  # what is decoded is in the batcher's queue a few turns of the loop later
        await asyncio.sleep(0)
    engine.gate.set()
    answers = await asyncio.gather(*tasks)
    assert [size for size, _ in answers] == [(8, 8)] * 41
    # In the first where that had not been formed yet.
    assert "quiet" in engine.batches[0] + engine.batches[1], "it is in the batch after the one that was at work"
    assert pipeline.rooms[0].size == 0


async def test_decoded_bytes_are_bounded_and_of_one_tenant_to_half(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = 3 * 4 * 1000 * 1000
    monkeypatch.setattr(module, "AHEAD_BYTES", 2 * 4 * each)  # half of it for small pictures
    engine = Engine()
    pipeline = Pipeline(engine, cores=1)  # type: ignore[arg-type]
    tasks = await come(pipeline, "flood", *[picture(1000, 1000)] * 6)
    await rested(pipeline)
    assert pipeline.rooms[0].size == 2 * each
    tasks += await come(pipeline, "other", *[picture(1000, 1000)] * 6)
    await rested(pipeline)
    assert pipeline.rooms[0].size == 3 * each
    engine.gate.set()
    await asyncio.gather(*tasks)
    await pipeline.aclose()


async def test_what_is_no_picture_fails_alone_and_holds_nothing(parts: Parts) -> None:
    engine, pipeline = parts
    engine.gate.set()
    tasks = await come(pipeline, "a", b"no picture", picture(), b"", picture(5000, 5000))
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[0], InvalidRequest) and answers[1] == ((8, 8), "a")
    assert pipeline.rooms[0].size == 0 and not pipeline.rooms[0]._held


async def test_a_tenants_encoded_bytes_are_bounded(parts: Parts) -> None:
    _, pipeline = parts
    most = module.WAITING_BYTES
    with pipeline.under_way.hold("a", most), pytest.raises(Unavailable), pipeline.under_way.hold("a", 1):
        raise AssertionError


async def test_large_pictures_that_are_known_by_their_headers_do_not_take_every_thread(parts: Parts) -> None:
    engine, pipeline = parts
    order: list[int] = []
    decode, gate = pipeline._decoding._short._run, threading.Event()

    def decoded(data: tuple[bytes, int]) -> Any:
        gate.wait()
        order.append(len(data[0]))
        return decode(data)

    pipeline._decoding._short._run = decoded
    large, small = picture(2000, 2000), picture()
    tasks = await come(pipeline, "first", small, small) + await come(pipeline, "flood", large, large)
    tasks += await come(pipeline, "quiet", *[small] * 2)
    gate.set()
    engine.gate.set()
    await asyncio.gather(*tasks)
    assert order[-1] == len(large), "of two threads the second is not the flood's while another waits"


async def test_pictures_that_take_long_do_not_hold_up_others_nor_do_their_answers(parts: Parts) -> None:
    engine, pipeline = parts
    engine.gate.set()
    gate, decode = threading.Event(), pipeline._decoding._long._run

    def held(data: Any) -> Any:
        gate.wait()
        return decode(data)

    pipeline._decoding._long._run = held
    huge = await come(pipeline, "flood", *[picture(3000, 3000)] * 4)
    reads = [pipeline.answered(gate.wait, (5000, 5000), Share(flow="flood")) for _ in range(4)]
    answers = [asyncio.create_task(read) for read in reads]
    assert await (await come(pipeline, "quiet", picture()))[0] == ((8, 8), "quiet")
    assert await pipeline.answered(lambda: "read", (8, 8), Share(flow="quiet")) == "read"
    gate.set()
    assert [size for size, _ in await asyncio.gather(*huge)] == [(3000, 3000)] * 4
    assert await asyncio.gather(*answers) == [True] * 4
