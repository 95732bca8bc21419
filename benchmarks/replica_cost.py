"""What a picture costs a replica beyond its decoding and its forward: processor time, in process, without Ray.

The shipped classifier at a solved level is called as a gateway calls it, so many at a time; beside it, in the same
rounds, the same pictures are decoded and run in batches of the same size by the engine alone, one after another.
Medians and quartiles of process time.

Usage: python -m benchmarks.replica_cost [--rounds 9] [--at-once 1,4,16] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deployments.config import REPOSITORY, ModelSpec, Task
from deployments.contracts.spending import Spending
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.decoding import decode_image
from deployments.engines.images.pipeline import Pipeline
from deployments.serving.replicas import VisionReplica
from deployments.serving.vitals import Vitals
from policies.terms import DEGRADED_DISCLOSURE, Modulation, Share

MODEL = REPOSITORY / "models" / "resnet18-cifar10"
TERMS = Modulation(utility=0.9, disclosure=DEGRADED_DISCLOSURE)
MOST_PIXELS = 10**7


def pictures(count: int) -> list[bytes]:
    """Small JPEGs, all different."""
    files = []
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file := io.BytesIO(), "JPEG")
        files.append(file.getvalue())
    return files


def loaded() -> ImageClassifier:
    """The shipped classifier with a head, its levels solved on a part of its sample."""
    sample = MODEL / "calibration.safetensors"
    spec = ModelSpec(id="pictures", task=Task.CLASSIFICATION, source=str(MODEL), calibration=str(sample))
    engine = ImageClassifier.load(spec)
    secret = b"a secret of the benchmarks alone"
    engine.install(engine.fit(engine.calibration_sample(sample), secret), secret)
    return engine


def replica(engine: ImageClassifier) -> VisionReplica:
    """A replica of it without Ray and without a keeper."""
    made: Any = VisionReplica.__new__(VisionReplica)
    made.engine, made._spending, made._vitals = engine, Spending(), Vitals(engine.trial)
    made._pictures = Pipeline(engine, cores=1)
    return made  # type: ignore[no-any-return]


async def served(shared: VisionReplica, files: list[bytes], at_once: int) -> float:
    """Milliseconds of processor time a picture through the replica."""
    waiting = list(files)

    async def client(number: int) -> None:
        share = Share(flow=f"tenant-{number % 3}")
        while waiting:
            await shared.predict(waiting.pop(), None, "masks", MOST_PIXELS, TERMS, share)

    began = time.process_time()
    await asyncio.gather(*(client(number) for number in range(at_once)))
    return (time.process_time() - began) / len(files) * 1e3


def alone(engine: ImageClassifier, files: list[bytes], at_once: int) -> float:
    """The same by the engine alone."""
    began = time.process_time()
    for start in range(0, len(files), at_once):
        images = [engine.preprocess(decode_image(file, MOST_PIXELS)) for file in files[start : start + at_once]]
        engine.forward(images, [TERMS] * len(images))
    return (time.process_time() - began) / len(files) * 1e3


async def measure(rounds: int, at_once: list[int]) -> dict[str, list[float]]:
    """Milliseconds a picture in each round: through the replica, by the engine alone, and what lies between."""
    torch.set_num_threads(1)
    engine, files = loaded(), pictures(96)
    shared, found = replica(engine), dict[str, list[float]]()
    for count in at_once:
        await served(shared, files, count)
        alone(engine, files, count)
    for _ in range(rounds):
        for count in at_once:
            whole, bare = await served(shared, files, count), alone(engine, files, count)
            for name, value in (("replica", whole), ("engine", bare), ("overhead", whole - bare)):
                found.setdefault(f"{name} at {count}", []).append(value)
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--at-once", default="1,4,16", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = asyncio.run(measure(given.rounds, given.at_once))
    print("| | ms a picture, median | quartiles |\n|---|---|---|")
    for name, values in found.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} |")
    if given.json:
        given.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
