"""Features of the classifier's pictures and of all their near-duplicates, computed once and kept in a cache folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.attacks.queries import final_inputs, read, usual, wide
from deployments.engines.images.classifier import ImageClassifier
from models.make_calibration_sample import CIFAR_SAMPLE, cifar_held_back

QUERIES, WIDE_QUERIES, BOTH_QUERIES = 100, 20, 20
JUDGED, EXAMPLES, BOTH_EXAMPLES, TRAINED = 1000, 6000, 600, 16000
_BATCH = 100
_PART = 100
Way = Callable[[Image.Image, int], Image.Image]


@dataclass(frozen=True)
class LabelFeatures:
    """What an attacker's queries are to the final layer; query 0 is the picture as it is.

    Attributes:
        judged: [1000, 100, H] usual near-duplicates of the pictures that judge.
        wide: [1000, 20, H] the same turned, cropped and recoloured.
        truth: [1000] int64.
        examples: [6000, H] labelled pictures, the last third of them mirrored.
        example_truth: [6000] int64.
        both: [600, 20, H] usual near-duplicates of labelled pictures, on which the field's metric was not fitted.
        both_truth: [600] int64.
        thrice: [4000, 3, H] the labelled pictures as they are, and two usual near-duplicates of each.
        trained: [16000, H] pictures that the model was trained on.
    """

    judged: Tensor
    wide: Tensor
    truth: Tensor
    examples: Tensor
    example_truth: Tensor
    both: Tensor
    both_truth: Tensor
    thrice: Tensor
    trained: Tensor


def cifar_trained(root: Path) -> list[Path]:
    """16,000 files that the model was trained on: with the held-back ones a student has 20,000 answers."""
    held_back = {file for file, _ in cifar_held_back(root)}
    files = [file for file in sorted((root / "train").glob("*/*.jpg")) if file not in held_back]
    return files[:: len(files) // TRAINED][:TRAINED]


def label_features(engine: ImageClassifier, root: Path, cache: Path) -> LabelFeatures:
    """Compute what the cache does not hold yet. The judged pictures neither trained nor calibrated the model."""
    held_back = cifar_held_back(root)
    files, classes = [file for file, _ in held_back], torch.tensor([k for _, k in held_back])
    known, judged = files[:CIFAR_SAMPLE], files[CIFAR_SAMPLE:][:JUDGED]
    one: Way = lambda image, number: usual(image, number, 1)  # noqa: E731
    mirrored: Way = lambda image, _: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # noqa: E731
    again = EXAMPLES - CIFAR_SAMPLE
    examples = [
        _kept(engine, known, 1, one, cache / "examples")[:, 0],
        _kept(engine, known[:again], 1, mirrored, cache / "mirrored")[:, 0],
    ]
    return LabelFeatures(
        examples=torch.cat(examples),
        both=_kept(engine, known[:BOTH_EXAMPLES], BOTH_QUERIES, one, cache / "both"),
        both_truth=classes[:BOTH_EXAMPLES],
        judged=_kept(engine, judged, QUERIES, one, cache / "judged"),
        wide=_kept(engine, judged, WIDE_QUERIES, wide, cache / "wide"),
        truth=classes[CIFAR_SAMPLE:][:JUDGED],
        example_truth=torch.cat([classes[:CIFAR_SAMPLE], classes[:again]]),
        thrice=_kept(engine, known, 3, one, cache / "thrice"),
        trained=_kept(engine, cifar_trained(root), 1, one, cache / "trained")[:, 0],
    )


def _kept(engine: ImageClassifier, files: Sequence[Path], queries: int, way: Way, cache: Path) -> Tensor:
    """Features [len(files), queries, H] float32, kept as float16 in parts of 100 pictures."""
    cache.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(files), _PART):
        path = cache / f"{engine.fingerprint}-{queries}-{start}.pt"
        if not path.exists():
            began, part = time.perf_counter(), files[start : start + _PART]
            images = (way(image, number) for image in read(part) for number in range(queries))
            features = torch.cat(list(final_inputs(engine, images, _BATCH)))
            torch.save(features.reshape(len(part), queries, -1).half(), path)
            print(f"  {cache.name} {start}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        parts.append(torch.load(path).float())
    return torch.cat(parts)
