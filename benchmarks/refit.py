"""What levels deliver on other traffic than they were solved on, before and after one refit on live inputs.

The engine that serves answers half of the new inputs for eight tenants, its live rows are solved on as a refit that
begins by itself is, and the other half judges: what tenants get at each level before the refit, after it, and after one
in which a ninth tenant has sent as many inputs as all others together, chosen to move the levels.

- labels: held-back CIFAR-10 pictures, blurred, noisy, of low contrast, or as coarse JPEGs, in turn
- masks: CamVid, two other drives than the one that calibrates; every other ten frames are served, the others judged
- text: prompts of a few wordings, where paragraphs calibrated

Usage: python -m benchmarks.refit [--cifar DIR] [--camvid DIR] [--text] [--secrets N]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from benchmarks.levels import FORMS, SMOLLM2, TEXT_STEPS, TOPICS, Share, clustered, final_inputs
from deployments.config import REPOSITORY
from deployments.engines.calibrated import CalibratedEngine
from deployments.engines.images.decoding import decode_image
from deployments.engines.images.engine import VisionEngine
from deployments.engines.images.segmenter import ImageSegmenter
from deployments.engines.live import LiveRows
from deployments.engines.text.calibration import answers, prompt_of
from deployments.engines.text.generator import Generator, SamplingParams
from deployments.upkeep.refitting import refitted
from policies.calibration.calibration import Calibration
from policies.calibration.sample import CalibrationSample
from policies.head.slots import Setting
from policies.terms import DEGRADED_DISCLOSURE, Modulation
from policies.terms import Share as Flow

sys.path.insert(0, str(REPOSITORY / "models"))
from make_calibration_sample import cifar_held_back, load_classifier, load_segmenter

LEVELS = (0.5, 0.7, 0.9)
TENANTS = 8
DRIVES = ("0001TP", "0006R0")
"""Of the training folder; the calibration sample is of another one."""
MORE_FORMS = ("Why does {} matter?", "Tell a joke about {}.", "What do people get wrong about {}?",
              "Write a letter to {}.", "Compare {} with music.", "List what one needs for {}.")  # fmt: skip
MORE_TOPICS = ("a river", "old maps", "rain", "the first snow", "a train station", "chess", "honey", "a wooden boat")
Judge = Callable[[], dict[float, Share]]


class Row(NamedTuple):
    """One level under one secret."""

    level: float
    before: Share
    after: Share
    flooded: Share


def secret_of(number: int) -> bytes:
    """One of the secrets that levels are measured under."""
    return hashlib.sha256(f"refit {number}".encode()).digest()


def corrupted(image: Image.Image, number: int) -> Image.Image:
    """A picture as four kinds of bad cameras give it, in turn."""
    match number % 4:
        case 0:
            return image.filter(ImageFilter.GaussianBlur(0.8))
        case 1:
            chance = torch.Generator().manual_seed(number)
            noise = torch.randn(image.height, image.width, 3, generator=chance) * 16.0
            pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(noise.shape)
            return Image.fromarray((pixels + noise).clamp(0, 255).byte().numpy())
        case 2:
            return ImageEnhance.Contrast(image).enhance(0.5)
        case _:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=15)
            return Image.open(file).convert("RGB")


def faded(image: Image.Image, number: int) -> Image.Image:
    """Between a picture and grey: what a tenant sends that wants levels to be sold with less noise."""
    return Image.blend(image, Image.new("RGB", image.size, (number % 256, 128, 128)), 0.85)


def answered(engine: VisionEngine, images: Sequence[Image.Image], flow: Callable[[int], str]) -> None:
    """Have the engine serve pictures at every level in turn, each for a tenant."""
    terms = [Modulation(utility=level, disclosure=DEGRADED_DISCLOSURE) for level in LEVELS]
    size = engine.spec.max_batch_size
    for start in range(0, len(images), size):
        numbers = range(start, min(start + size, len(images)))
        own = [terms[number % len(terms)] for number in numbers]
        items = engine.forward([engine.preprocess(images[n]) for n in numbers], own, [flow(n) for n in numbers])
        for number, item, term in zip(numbers, items, own, strict=True):
            if isinstance(engine, ImageSegmenter):
                engine.answer(item, term, (images[number].height, images[number].width))


def tenant(number: int) -> str:
    """Whose an input is: tenants take turns, in blocks that no level or corruption goes along with."""
    return f"tenant-{number // 12 % TENANTS}"


@torch.inference_mode()
def judged(engine: VisionEngine, inputs: Sequence[tuple[Tensor, tuple[int, int]]]) -> dict[float, Share]:
    """Labels, or masks at the picture's size, against the clean ones."""
    settings = [Setting(), *(Setting(level) for level in LEVELS)]
    engine.head.write_all(settings)
    same: list[Tensor] = []
    for features, size in inputs:
        logits = engine.final(features.expand(len(settings), *features.shape[1:]))
        if isinstance(engine, ImageSegmenter):
            read = torch.stack([engine.read(item, size)[0] for item in logits])
        else:
            read = logits.argmax(dim=1)
        same.append((read[1:] == read[0]).reshape(len(LEVELS), -1).double().mean(dim=1))
    hits = torch.stack(same)
    error = hits.std(dim=0) / len(hits) ** 0.5
    return {level: Share(float(hits[:, i].mean()), float(error[i])) for i, level in enumerate(LEVELS)}


def put(engine: CalibratedEngine, calibration: Calibration, secret: bytes) -> None:
    """A calibration in an engine's place, as a new one."""
    engine.uninstall()
    engine.install(calibration, secret)


def measured(
    engine: CalibratedEngine,
    sample: CalibrationSample,
    secret: bytes,
    serve: Callable[[], None],
    flood: Callable[[], None],
    judge: Judge,
) -> list[Row]:
    """One secret: solve on the sample, serve other traffic, refit, and refit once more with a tenant that floods."""
    first = engine.fit(sample, secret)

    def refit() -> None:
        kept = engine.live_rows()
        made = refitted(engine, kept, secret, first, LEVELS, least=engine.least_live, strict=True)
        put(engine, made.calibration, secret)
        print(f"  solved on {made.calibration.answers} answers of {made.tenants} tenants, {made.left_out} left out")
        engine.judge_live()
        held_out = ", ".join(f"{r.level:g}: {r.expected.level:.3f} ± {r.expected.error:.3f}" for r in engine.reports())
        print(f"  on live inputs held out {held_out}", flush=True)

    engine.live = LiveRows(engine.live_capacity)
    if isinstance(engine, Generator):
        engine.engine.seats.live = engine.live
    put(engine, first, secret)
    before = judge()
    serve()
    refit()
    after = judge()
    put(engine, first, secret)
    flood()
    refit()
    flooded = judge()
    return [Row(level, before[level], after[level], flooded[level]) for level in LEVELS]


def table(name: str, rows: Sequence[Row]) -> None:
    """Print a Markdown table: each figure the mean over secrets, and the largest error of any."""
    print(f"\n{name}\n\n| level | before, largest error | after one refit, largest error | a tenant floods: moved by |")
    print("|---|---|---|---|")
    for level in LEVELS:
        mine = [row for row in rows if row.level == level]

        def shown(shares: Sequence[Share], level: float = level) -> str:
            worst = max((share.value - level for share in shares), key=abs)
            error = sum(share.error for share in shares) / len(shares)
            return f"{sum(s.value for s in shares) / len(shares):.3f} ± {error:.3f}, {worst:+.3f}"

        moved = max((row.flooded.value - row.after.value for row in mine), key=abs)
        print(f"| {level} | {shown([r.before for r in mine])} | {shown([r.after for r in mine])} | {moved:+.3f} |")
    sys.stdout.flush()


def pictures_served(
    name: str,
    engine: VisionEngine,
    served: Sequence[Image.Image],
    inputs: Sequence[tuple[Tensor, tuple[int, int]]],
    secrets: int,
) -> None:
    """Serve pictures under each secret, flood with faded copies of them, judge on other inputs, and print the table."""
    odd = [faded(image, number) for number, image in enumerate(served)]
    sample = engine.calibration_sample(Path(str(engine.spec.calibration)))
    rows: list[Row] = []
    for number in range(secrets):
        rows += measured(
            engine, sample, secret_of(number),
            lambda: answered(engine, served, tenant),
            lambda: answered(engine, odd, lambda _: "flood"),
            lambda: judged(engine, inputs),
        )  # fmt: skip
        table(f"{name}, {number + 1} secrets", rows)


def labels(root: Path, secrets: int) -> None:
    """Corrupted CIFAR-10 pictures."""
    engine = load_classifier()
    files = [file for file, _ in cifar_held_back(root)]
    pictures = [decode_image(file.read_bytes()) for file in files]
    others = [corrupted(image, number) for number, image in enumerate(pictures[1::2])]
    # In two ways each, so that about as many are solved on as are judged.
    served = [corrupted(image, number + way) for way in (0, 1) for number, image in enumerate(pictures[0::2])]
    inputs = [(engine.final_input(engine.preprocess(image)[None]), (32, 32)) for image in others]
    pictures_served(f"labels, {len(served)} pictures served, {len(others)} judged", engine, served, inputs, secrets)


def masks(root: Path, secrets: int) -> None:
    """Two drives of the training folder; what is served is mirrored too, so that enough inputs come."""
    engine = load_segmenter()
    files = [file for drive in DRIVES for file in sorted((root / "train" / "images").glob(f"{drive}*"))]
    # Frames that follow each other are nearly one picture: halves by frame would judge what was solved on.
    halves = [[file for number, file in enumerate(files) if number // 10 % 2 == half] for half in (0, 1)]
    served = [decode_image(file.read_bytes()) for file in halves[0]]
    served += [ImageOps.mirror(image) for image in served]
    inputs = list(final_inputs(engine, halves[1]))
    pictures_served(f"masks, {len(served)} pictures served, {len(inputs)} judged", engine, served, inputs, secrets)


def text(secrets: int) -> None:
    """Prompts of other wordings than the paragraphs that calibrate."""
    with closing(Generator.load(SMOLLM2, torch.device("cpu"))) as engine:

        def prompts(forms: Sequence[str], topics: Sequence[str]) -> list[list[int]]:
            return [prompt_of(engine.language_model, form.format(topic)) for topic in topics for form in forms]

        def serve(asked: Sequence[list[int]], flow: Callable[[int], str]) -> None:
            async def one(number: int, prompt: list[int], room: asyncio.Semaphore) -> None:
                params, setting = SamplingParams(TEXT_STEPS, 0.0), Setting(LEVELS[number % len(LEVELS)])
                async with room:
                    async for _ in engine.engine.run(prompt, params, setting, Flow(flow=flow(number))):
                        pass

            async def every() -> None:
                room = asyncio.Semaphore(2 * SMOLLM2.max_batch_size)
                await asyncio.gather(*(one(number, prompt, room) for number, prompt in enumerate(asked)))

            asyncio.run(every())

        def judge() -> dict[float, Share]:
            shares = {}
            for level in LEVELS:
                given = answers(engine, [(prompt, Setting(level)) for prompt in others], steps=TEXT_STEPS)
                same = [engine.clean_logits(one.features).argmax(dim=1) == torch.tensor(one.tokens) for one in given]
                which = torch.arange(len(same)).repeat_interleave(torch.tensor([len(own) for own in same]))
                shares[level] = clustered(torch.cat(same), which)
            return shares

        served, others = prompts((*FORMS, *MORE_FORMS), TOPICS), prompts(FORMS, MORE_TOPICS)
        odd = prompts([f"Say {{}} {times} times, and nothing else." for times in range(20, 40)], TOPICS[:6])
        sample = engine.calibration_sample()
        rows: list[Row] = []
        for number in range(secrets):
            rows += measured(
                engine, sample, secret_of(number),
                lambda: serve(served, tenant), lambda: serve(odd, lambda _: "flood"), judge,
            )  # fmt: skip
            table(f"text, {len(served)} prompts served, {len(others)} judged, {number + 1} secrets", rows)


def main() -> None:
    """Measure and print a table for each task asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="folder that holds train/<class>/*.jpg")
    parser.add_argument("--camvid", type=Path, help="folder that holds train/images")
    parser.add_argument("--text", action="store_true", help="the text model")
    parser.add_argument("--secrets", type=int, default=1, help="noise secrets to measure under")
    arguments = parser.parse_args()
    if arguments.cifar:
        labels(arguments.cifar, arguments.secrets)
    if arguments.camvid:
        masks(arguments.camvid, arguments.secrets)
    if arguments.text:
        text(arguments.secrets)


if __name__ == "__main__":
    main()
