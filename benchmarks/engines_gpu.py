"""Vision engines and a replica's whole way on a card: ResNet-50 and SegFormer-B0 to B5, random weights, level 0.9.

For each model the engine's pictures a second in batches, modulated over plain in turns, the same through a replica's
decoding, queues and batches in process (JPEGs in, answers out), and the most memory that the card held. The layer
itself, the shapes of Llama and the bandwidth limit are benchmarks.layer_cost_cuda's; `benchmarks/gpu.sh` runs both.

Usage: python -m benchmarks.engines_gpu [--tiny] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from benchmarks.layer_cost_cuda import SECRET, SEGFORMERS
from benchmarks.replica_cost import MOST_PIXELS, replica
from deployments.config import ModelSpec, Task
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.engine import VisionEngine
from deployments.engines.images.segmenter import ImageSegmenter
from deployments.serving.cores import usable_cores
from policies import Calibration
from policies.field.variance import POSITIONS
from policies.terms import DEGRADED_DISCLOSURE, Modulation, Share

PLAIN, LOWER = Modulation(), Modulation(utility=0.9, disclosure=DEGRADED_DISCLOSURE)


def resnet(folder: Path, tiny: bool, device: torch.device) -> VisionEngine:
    """ResNet-50 of 1,000 classes; tiny: ResNet-18 of 10."""
    name, classes = ("resnet18", 10) if tiny else ("resnet50", 1000)
    torch.manual_seed(0)
    save_file(torchvision.models.get_model(name, num_classes=classes).state_dict(), folder / "resnet.safetensors")
    labels = tuple(f"class {at}" for at in range(classes))
    source: dict[str, Any] = {
        "source": f"torchvision:{name}",
        "weights": str(folder / "resnet.safetensors"),
        "labels": labels,
    }
    given: dict[str, Any] = source | {"input_size": 64 if tiny else 224} | _dtype(device)
    spec = ModelSpec(id=name, task=Task.CLASSIFICATION, **given)
    return ImageClassifier.load(spec, device)


def segformer(name: str, folder: Path, tiny: bool, device: torch.device) -> VisionEngine:
    """One of the SegFormers, of 150 classes at 512 x 512; tiny: at 64 x 64 with narrow stages."""
    widths, depths, decoder = SEGFORMERS[name]
    if tiny:
        widths, depths, decoder = (8, 16, 40, 64), (1, 1, 1, 1), 32
    config = SegformerConfig(
        hidden_sizes=list(widths), depths=list(depths), decoder_hidden_size=decoder, num_labels=5 if tiny else 150
    )
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(config).save_pretrained(folder / name)
    side = 64 if tiny else 512
    SegformerImageProcessor(size={"height": side, "width": side}).save_pretrained(folder / name)
    spec = ModelSpec(id=name.lower(), task=Task.SEGMENTATION, source=str(folder / name), **_dtype(device))
    return ImageSegmenter.load(spec, device)


def _dtype(device: torch.device) -> dict[str, Any]:
    return {"max_batch_size": 16, "dtype": "bfloat16" if device.type == "cuda" else "float32"}


def levelled(engine: VisionEngine) -> VisionEngine:
    """The engine with a head; of random weights no level is solved, and none needs to be to be timed."""
    curve = ((0, 1.0), (POSITIONS, 0.1))
    ones, block = (1.0,), 4 if engine.task is Task.SEGMENTATION else 1
    engine.install(Calibration(engine.fingerprint, 10.0, engine.depth, curve, ones, ones, 1000, None, block), SECRET)
    for future in engine.prepare(LOWER):
        future.result()
    return engine


def pictures(count: int, side: int) -> list[bytes]:
    """JPEGs, all different."""
    files = []
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file := io.BytesIO(), "JPEG")
        files.append(file.getvalue())
    return files


def batches(engine: VisionEngine, inputs: list[torch.Tensor], terms: Modulation, seconds: float) -> float:
    """Pictures a second of the engine alone."""
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds or not done:
        items = engine.forward(inputs, [terms] * len(inputs))
        items[-1].logits.flatten()[0].item()  # waits for the card
        done += len(inputs)
    return done / max(took, time.perf_counter() - began)


async def through(engine: VisionEngine, files: list[bytes], terms: Modulation) -> float:
    """Pictures a second from JPEG to answer, two batches' worth at a time."""
    shared, waiting = replica(engine, usable_cores()), list(files)
    form = "masks" if engine.task is Task.CLASSIFICATION else "labelmap"

    async def client() -> None:
        while waiting:
            await shared.predict(waiting.pop(), None, form, MOST_PIXELS, terms, Share(flow="one"))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(2 * engine.spec.max_batch_size)))
    took = time.perf_counter() - began
    await shared._pictures.aclose()
    return len(files) / took


def row(engine: VisionEngine, side: int, rounds: int, tiny: bool) -> str:
    """One model's row; medians of rounds in turns."""
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    files, seconds = pictures(engine.spec.max_batch_size * (1 if tiny else 8), side), 0.1 if tiny else 0.7
    image = Image.open(io.BytesIO(files[0])).convert("RGB")
    inputs = [engine.preprocess(image)] * engine.spec.max_batch_size
    rates: dict[str, list[float]] = {"plain": [], "modulated": [], "through": [], "through, modulated": []}
    for at in range(rounds + 1):
        found = {
            "plain": batches(engine, inputs, PLAIN, seconds),
            "modulated": batches(engine, inputs, LOWER, seconds),
            "through": asyncio.run(through(engine, files, PLAIN)),
            "through, modulated": asyncio.run(through(engine, files, LOWER)),
        }
        for name, rate in found.items() if at else ():
            rates[name].append(rate)
    plain, lower, whole, lowered = (statistics.median(values) for values in rates.values())
    memory = f"{torch.cuda.max_memory_allocated() / 2**20:,.0f}" if engine.device.type == "cuda" else ""
    cells = f"{plain:.0f} | {lower:.0f} | {lower / plain:.3f} | {whole:.0f} | {lowered:.0f} | {lowered / plain:.2f}"
    return f"| {engine.model_id} | {cells} | {memory} |"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script without a card")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print("| model | engine/s, level 1.0 | at 0.9 | ratio | JPEG to answer/s, 1.0 | at 0.9 | of the engine | MiB |")
    print("|---|---|---|---|---|---|---|---|")
    side = 64 if given.tiny else 512
    with tempfile.TemporaryDirectory() as folder:
        for made in _engines(Path(folder), given.tiny, device):
            print(row(levelled(made), side, given.rounds, given.tiny), flush=True)
            del made
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _engines(folder: Path, tiny: bool, device: torch.device) -> Iterator[VisionEngine]:
    yield resnet(folder, tiny, device)
    for name in list(SEGFORMERS)[: 1 if tiny else None]:
        yield segformer(name, folder, tiny, device)


if __name__ == "__main__":
    main()
