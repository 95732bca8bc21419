"""What focus does: recall, precision, IoU and the share of other rows changed, for a class of each vision model, and
how often a word is written by the text model.

Usage: python benchmarks/focus.py [--cifar DIR] [--camvid DIR] [--text] [--picture OUT.png]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deployments.config import REPOSITORY
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.decoding import decode_image
from deployments.engines.images.segmenter import ImageSegmenter
from deployments.engines.text.generator import Generator, SamplingParams
from policies.terms import Modulation, Share

sys.path.insert(0, str(REPOSITORY / "models"))
sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from levels import SMOLLM2
from make_calibration_sample import (
    CIFAR_SAMPLE,
    camvid_validation,
    cifar_held_back,
    load_classifier,
    load_segmenter,
)

SECRET = b"the noise secret of benchmarks/focus.py"
STRENGTHS = (0.0, 0.5, 0.9, -0.5, -0.9)
VOID = 11
PROMPTS = (
    "Write two sentences about a long journey.",
    "Where would you go on a holiday, and why?",
    "Describe the view from a window.",
    "Tell me about something that is very large.",
    "What do sailors see every day?",
    "Write a short poem about blue things.",
)
PALETTE = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (255, 230, 0), (0, 128, 192)),
)


def calibrated(engine: ImageClassifier | ImageSegmenter) -> None:
    """Install the calibration of the bundled sample."""
    sample = engine.calibration_sample(Path(str(engine.spec.calibration)))
    engine.install(engine.fit(sample, SECRET), SECRET)


def report(name: str, strength: float, truth: np.ndarray, clean: np.ndarray, moved: np.ndarray, k: int) -> None:
    """One line of the table: the class's recall, precision and IoU, and what happened to everything else."""
    hit = int(((truth == k) & (moved == k)).sum())
    recall, precision = hit / max(1, int((truth == k).sum())), hit / max(1, int((moved == k).sum()))
    iou = hit / max(1, int(((truth == k) | (moved == k)).sum()))
    others = truth != k
    changed = float((clean[others] != moved[others]).mean())
    print(f"| {name} | {strength:+.1f} | {recall:.3f} | {precision:.3f} | {iou:.3f} | {changed:.4f} |", flush=True)


def masks(engine: ImageSegmenter, images: Sequence[Image.Image], modulation: Modulation) -> np.ndarray:
    """Class maps at the pictures' size, stacked."""
    out = []
    for image in images:
        (item,) = engine.forward([engine.preprocess(image)], [modulation])
        out.append(engine.read(item.logits, (image.height, image.width))[0].numpy())
    return np.stack(out)


def segmentation(root: Path, picture: Path | None, name: str = "pedestrian") -> None:
    """A class of the segmenter on the validation pictures that did not calibrate it."""
    engine, files = load_segmenter(), camvid_validation(root)[1]
    calibrated(engine)
    k = engine.classes.index(name)
    images = [decode_image(file.read_bytes()) for file in files]
    truth = np.stack([np.array(Image.open(f.parents[1] / "labels" / f"{f.stem}.png")) for f in files]).astype(int)
    truth[truth == VOID] = -1
    clean = masks(engine, images, Modulation())
    rows = {}
    for strength in STRENGTHS:
        rows[strength] = masks(engine, images, Modulation(focus={name: strength} if strength else {}))
        known = truth >= 0
        report(f"{engine.model_id}: {name}", strength, truth[known], clean[known], rows[strength][known], k)
    if picture:
        at = int((truth == k).sum(axis=(1, 2)).argmax())
        colours = np.array(PALETTE, dtype=np.uint8)
        strips = [np.asarray(images[at])] + [colours[rows[f][at]] for f in (0.0, 0.9, -0.9)]
        Image.fromarray(np.concatenate(strips, axis=1)).save(picture)


def classification(root: Path, name: str = "cat") -> None:
    """A class of the classifier on the held-back pictures that did not calibrate it."""
    engine, files = load_classifier(), cifar_held_back(root)[CIFAR_SAMPLE:]
    calibrated(engine)
    images = [decode_image(file.read_bytes()) for file, _ in files]
    truth = np.array([k for _, k in files])

    def answers(modulation: Modulation) -> np.ndarray:
        found = []
        for start in range(0, len(images), 100):
            batch = images[start : start + 100]
            found += [a[0].label for a in engine.predict(batch, [modulation] * len(batch), [1] * len(batch))]
        return np.array([engine.classes.index(label) for label in found])

    clean = answers(Modulation())
    for strength in STRENGTHS:
        moved = answers(Modulation(focus={name: strength} if strength else {}))
        report(f"{engine.model_id}: {name}", strength, truth, clean, moved, engine.classes.index(name))


async def words(name: str = "ocean", tokens: int = 48) -> None:
    """A word of the text model: how often it is written in greedy answers."""
    spec = SMOLLM2
    engine = Generator.load(spec, torch.device("cpu"))
    engine.install(engine.fit(engine.calibration_sample(), SECRET), SECRET)

    async def answer(prompt: str, strength: float) -> tuple[str, int]:
        ids = engine.encode_chat([{"role": "user", "content": prompt}])
        terms = Modulation(focus={name: strength} if strength else {})
        params = SamplingParams(max_tokens=tokens, temperature=0.0)
        deltas = [delta async for delta in engine.generate(ids, params, terms, Share(flow="benchmark"))]
        return "".join(d.text for d in deltas), deltas[-1].completion_tokens

    for strength in STRENGTHS:
        answers = await asyncio.gather(*(answer(prompt, strength) for prompt in PROMPTS))
        count = sum(text.lower().count(name) for text, _ in answers)
        print(f"| {spec.id}: {name} | {strength:+.1f} | {count} times in {sum(n for _, n in answers)} tokens |")
        print(f"    {answers[0][0]!r}", flush=True)
    engine.close()


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="folder that holds train/<class>/*.jpg")
    parser.add_argument("--camvid", type=Path, help="folder that holds val/images and val/labels")
    parser.add_argument("--picture", type=Path, help="where to draw a picture and its masks at 0, 0.9 and -0.9")
    parser.add_argument("--text", action="store_true", help="the word")
    arguments = parser.parse_args()
    if arguments.cifar or arguments.camvid:
        print("| model: class | strength | recall | precision | IoU | others changed |\n|---|---|---|---|---|---|")
    if arguments.cifar:
        classification(arguments.cifar)
    if arguments.camvid:
        segmentation(arguments.camvid, arguments.picture)
    if arguments.text:
        asyncio.run(words())


if __name__ == "__main__":
    main()
