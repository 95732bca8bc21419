"""What the segmenter's final layer makes of street scenes and all their near-duplicates, kept in a cache folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.attacks.queries import SEED, final_inputs, read, usual
from deployments.engines.images.duplicates import MOST_STEPS, Duplicate
from deployments.engines.images.segmenter import ImageSegmenter
from models.make_calibration_sample import camvid_validation
from policies.head.blocks import block_means

QUERIES, BOTH_QUERIES = 100, 20
JUDGED, EXAMPLES, BOTH_EXAMPLES = 6, 8, 4
OTHER, SAME = "other drives", "same drive"
OTHER_DRIVES = ("0001TP", "0006R0")
STEP = 4
"""Pixels: a near-duplicate is shifted by up to two steps each way."""
EDGE = MOST_STEPS * STEP
"""Pixels at the border that shifted pictures do not show, and that are not judged."""
VOID = 11


@dataclass(frozen=True)
class Scene:
    """One picture and its near-duplicates; query 0 is the picture as it is.

    Attributes:
        picture: [h, w, 3] uint8.
        truth: [h, w] int64, 11 where unknown.
        means: [Q, H, h', w'] float16 block means, what the noise field sees.
        logits: [Q, K, h'', w''] float16 clean logits.
    """

    picture: Tensor
    truth: Tensor
    means: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Scenes:
    """Scenes that judge, with 100 queries, and labelled ones.

    Attributes:
        examples: 8 pictures of the drive that judges too, some frames away; the first 4 with 20 queries. They were
            among the calibration pictures (a field does not know which inputs it was calibrated on).
        foreign: 8 pictures of two other drives, with one query. The model was trained on them.
    """

    judged: list[Scene]
    examples: list[Scene]
    foreign: list[Scene]


def scenes(engine: ImageSegmenter, root: Path, cache: Path) -> Scenes:
    """Compute what the cache does not hold yet."""
    labelled = labelled_files(root)
    return Scenes(
        judged=[_scene(engine, file, QUERIES, cache) for file in judged_files(root)],
        examples=[
            _scene(engine, file, BOTH_QUERIES if i < BOTH_EXAMPLES else 1, cache)
            for i, file in enumerate(labelled[SAME])
        ],
        foreign=[_scene(engine, file, 1, cache) for file in labelled[OTHER]],
    )


def judged_files(root: Path) -> Sequence[Path]:
    """Those of the scenes that judge."""
    return _spread(camvid_validation(root)[1], JUDGED)


def labelled_files(root: Path) -> dict[str, Sequence[Path]]:
    """Those of the labelled scenes, by drive."""
    drives = [sorted((root / "train" / "images").glob(f"{drive}*")) for drive in OTHER_DRIVES]
    others = [file for files in drives for file in _spread(files, EXAMPLES // len(drives))]
    return {OTHER: others, SAME: _spread(camvid_validation(root)[0], EXAMPLES)}


def _spread(files: Sequence[Path], count: int) -> Sequence[Path]:
    return files[:: len(files) // count][:count]


def undone(answers: Tensor, numbers: Sequence[int]) -> Tensor:
    """Maps [Q, h, w] at the picture's resolution, answered to near-duplicates, in the picture's own frame."""
    straight = []
    for answer, number in zip(answers, numbers, strict=True):
        way = Duplicate.draw(number and SEED + number)
        rolled = answer.roll((way.down * STEP, way.right * STEP), (-2, -1))
        straight.append(rolled.flip(-1) if way.mirrored else rolled)
    return torch.stack(straight)


def seen(engine: ImageSegmenter, file: Path, queries: int, cache: Path, lazily: bool = False) -> tuple[Tensor, Tensor]:
    """Block means [Q, H, h', w'] and clean logits [Q, K, h'', w''] of a picture's near-duplicates, float16.

    Args:
        lazily: leave them in the cache's file until they are used.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{engine.fingerprint}-{file.stem}-{queries}.pt"
    if not path.exists():
        (picture,) = read([file])
        began, means, logits = time.perf_counter(), [], []
        for features in final_inputs(engine, (usual(picture, n, STEP) for n in range(queries)), 4):
            means.append(block_means(features, engine.scheme.block).half())
            with torch.inference_mode():
                logits.append(engine.final(features).half())
        torch.save((torch.cat(means), torch.cat(logits)), path)
        print(f"  {file.stem}: {queries} queries, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    means_, logits_ = torch.load(path, mmap=lazily)
    return means_, logits_


def _scene(engine: ImageSegmenter, file: Path, queries: int, cache: Path) -> Scene:
    means, logits = seen(engine, file, queries, cache)
    (picture,) = read([file])
    truth = np.array(Image.open(file.parents[1] / "labels" / f"{file.stem}.png"))
    return Scene(torch.from_numpy(np.array(picture)), torch.from_numpy(truth).long(), means, logits)
