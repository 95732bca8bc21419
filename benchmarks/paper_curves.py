"""The paper's experiments (AIM, arXiv 2603.12755), with its independent noise and with the ladder, drawn.

Three sweeps: the scale of utility noise against classification accuracy; the scale of a class's focus, added to every
row as in the paper, against that class's recall and IoU and those of the others; the scale of utility noise against a
text's token agreement and the perplexity that the clean model finds in it. Points are measured, lines the closed form.

Usage: python benchmarks/paper_curves.py [--cifar DIR] [--camvid DIR] [--text] [--out DIR]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deployments.config import REPOSITORY
from deployments.engines.images.engine import VisionEngine
from deployments.engines.images.segmenter import ImageSegmenter
from policies.calibration.calibration import Calibration
from policies.closed_form import agreement
from policies.field.ladder import NoiseLadder
from policies.head.blocks import block_means, spread
from policies.reference import independent_focus, independent_utility

sys.path.insert(0, str(REPOSITORY / "models"))
sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from levels import final_inputs
from make_calibration_sample import CIFAR_SAMPLE, camvid_validation, cifar_held_back, load_classifier, load_segmenter
from paper_support import NOISES, SECRET, finish, position_of, winning
from paper_text import text

SIGMAS = tuple(float(f"{s:.3g}") for s in np.geomspace(0.05, 30.0, 16))
FOCUS_STDS = (0.0, *(float(f"{s:.3g}") for s in np.geomspace(0.5, 32.0, 10)))
FOCUSED, VOID = "pedestrian", 11


def field_of(engine: VisionEngine) -> tuple[Calibration, NoiseLadder, int]:
    """The installation's field of a shipped model, and its number of classes."""
    calibration = engine.fit(engine.calibration_sample(Path(str(engine.spec.calibration))), SECRET)
    classes = len(engine.classes)
    return calibration, calibration.ladder(SECRET, features=engine.features, classes=classes), classes


@torch.inference_mode()
def classification(root: Path, out: Path) -> None:
    """Sigma against accuracy and against agreement with the clean answer."""
    engine, held_back = load_classifier(), cifar_held_back(root)[CIFAR_SAMPLE:]
    _, ladder, _ = field_of(engine)
    features = torch.cat([x for x, _ in final_inputs(engine, [file for file, _ in held_back])])
    logits, truth = engine.final(features).float(), torch.tensor([k for _, k in held_back])
    clean, phi = logits.argmax(dim=1), ladder.phi(features)
    generator = torch.Generator().manual_seed(0)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in NOISES}
    for sigma in SIGMAS:
        noisy = {
            "independent": torch.stack([independent_utility(logits, sigma, generator) for _ in range(5)]),
            "ladder": (logits + phi @ ladder.matrix(position_of(sigma)))[None],
        }
        for name, z in noisy.items():
            answer = z.argmax(dim=2)
            measured[name].append((float((answer == truth).double().mean()), float((answer == clean).double().mean())))
    lines = [
        (float(winning(logits, s).gather(1, truth[:, None]).mean()), float(agreement(logits, s).mean())) for s in SIGMAS
    ]
    print("| sigma | accuracy: closed form, independent, ladder | agreement: closed form, independent, ladder |")
    print("|---|---|---|")
    for i, sigma in enumerate(SIGMAS):
        cells = [" ".join(f"{v:.3f}" for v in (lines[i][c], *(measured[n][i][c] for n, _ in NOISES))) for c in (0, 1)]
        print(f"| {sigma} | {cells[0]} | {cells[1]} |", flush=True)
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.6))
    for c, (axis, title) in enumerate(zip(axes, ("accuracy", "agreement with the clean answer"), strict=True)):
        axis.plot(SIGMAS, [line[c] for line in lines], color="grey", label="closed form")
        for name, mark in NOISES:
            axis.plot(SIGMAS, [m[c] for m in measured[name]], mark, label=f"{name} noise")
        axis.set(xscale="log", xlabel="sigma (logit units)", ylim=(0.0, 1.0), title=title)
    finish(figure, axes[0], out / "paper_classification.png", f"{engine.model_id}, {len(truth)} held-back images")


class Pixels(NamedTuple):
    """Labelled rows: clean logits [N, K], truth [N], and the ladder's noise [N] of the focused class, at a std of 1."""

    logits: Tensor
    truth: Tensor
    xi: Tensor


@torch.inference_mode()
def segmentation(root: Path, out: Path) -> None:
    """The raw standard deviation of a class's focus against recall and IoU, at the logits' own resolution."""
    engine, files = load_segmenter(), camvid_validation(root)[1]
    rows = focus_sweep(pixels_of(engine, files), engine.classes.index(FOCUSED), len(engine.classes))
    names = (f"recall of {FOCUSED}", f"IoU of {FOCUSED}", "mean recall of the others", "mean IoU of the others")
    print(f"| focus std | {' | '.join(names)} |\n|---|---|---|---|---|")
    for i, std in enumerate(FOCUS_STDS):
        cells = [" ".join(f"{rows[n][i][c]:.3f}" for n in rows) for c in range(len(names))]
        print(f"| {std} | {' | '.join(cells)} |", flush=True)
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.6))
    for c, name in enumerate(names):
        axis, colour = axes[c // 2], f"C{c % 2}"
        axis.plot(FOCUS_STDS, [r[c] for r in rows["closed form"]], color=colour, label=f"{name}, closed form")
        for noise, mark in NOISES:
            axis.plot(FOCUS_STDS, [r[c] for r in rows[noise]], mark, color=colour, label=f"{noise} noise")
        title = ("the class in focus", "the others")[c // 2]
        axis.set(xscale="symlog", xlabel="focus std (logit units), on every row", ylim=(0.0, 1.0), title=title)
    axes[1].legend(fontsize=7)
    finish(figure, axes[0], out / "paper_focus.png", f"{engine.model_id}, focus on {FOCUSED}, {len(files)} pictures")


def pixels_of(engine: ImageSegmenter, files: Sequence[Path]) -> Pixels:
    """The labelled rows of some pictures, each picture's labels brought to the logits' resolution."""
    calibration, ladder, _ = field_of(engine)
    xi_column = ladder.focus_matrix()[:, [engine.classes.index(FOCUSED)]]
    parts = []
    for file, (features, _) in zip(files, final_inputs(engine, files), strict=True):
        height, width = features.shape[-2:]
        labelled = Image.open(file.parents[1] / "labels" / f"{file.stem}.png")
        labels = labelled.resize((width, height), Image.Resampling.NEAREST)
        means = block_means(features, calibration.block)
        squares = (ladder.phi(places(means)) @ xi_column).reshape(len(means), *means.shape[-2:], 1).movedim(-1, 1)
        xi = places(spread(squares, calibration.block, height, width))
        truth = torch.from_numpy(np.array(labels)).long().flatten()
        known = truth < VOID
        logits = places(engine.final(features)).float()
        parts.append((logits[known], truth[known], xi[known, 0]))
    return Pixels(*(torch.cat(column) for column in zip(*parts, strict=True)))


def places(maps: Tensor) -> Tensor:
    """[B, C, h, w] to [B * h * w, C]."""
    return maps.movedim(1, -1).flatten(0, -2)


def focus_sweep(pixels: Pixels, target: int, classes: int) -> dict[str, list[tuple[float, ...]]]:
    """`scores` by noise, at each of `FOCUS_STDS`."""
    logits, truth, xi = pixels
    top, clean = logits.max(dim=1)
    gap = (top - logits[:, target]).double()
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in ("closed form", "independent", "ladder")}
    for std in FOCUS_STDS:
        lifted = logits.clone()
        lifted[:, target] += std * xi.abs()
        drawn = independent_focus(logits, torch.tensor([target]), std, generator)
        for name, z in (("independent", drawn), ("ladder", lifted)):
            chosen = z.argmax(dim=1)
            rows[name].append(scores((chosen == target).double(), clean, truth, target, classes))
        # The target's lead must exceed its gap: P(std |xi| > gap) = erfc(gap / (std sqrt 2)).
        wins = torch.erfc(gap / (max(std, 1e-9) * math.sqrt(2.0)))
        rows["closed form"].append(scores(torch.where(clean == target, 1.0, wins), clean, truth, target, classes))
    return rows


def scores(taken: Tensor, clean: Tensor, truth: Tensor, target: int, classes: int) -> tuple[float, ...]:
    """Recall and IoU of the target and means of the others', from each row's chance [N] float64 that the target wins.

    A row that the target does not win keeps its clean answer.
    """
    confusion = torch.zeros(classes, classes, dtype=torch.float64)
    confusion.view(-1).index_add_(0, truth * classes + clean, torch.where(clean == target, 1.0, 1.0 - taken))
    confusion.view(-1).index_add_(0, truth * classes + target, torch.where(clean == target, 0.0, taken))
    hits, there = confusion.diag(), confusion.sum(1)
    recall, iou = hits / there, hits / (there + confusion.sum(0) - hits)
    others = (torch.arange(classes) != target) & (there > 0)
    return float(recall[target]), float(iou[target]), float(recall[others].mean()), float(iou[others].mean())


def main() -> None:
    """Measure, print tables and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="folder that holds train/<class>/*.jpg")
    parser.add_argument("--camvid", type=Path, help="folder that holds val/images and val/labels")
    parser.add_argument("--text", action="store_true", help="the text model")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs", help="where the pictures go")
    arguments = parser.parse_args()
    sweeps: Sequence[Callable[[], None]] = [
        *([lambda: classification(arguments.cifar, arguments.out)] if arguments.cifar else []),
        *([lambda: segmentation(arguments.camvid, arguments.out)] if arguments.camvid else []),
        *([lambda: text(arguments.out)] if arguments.text else []),
    ]
    for sweep in sweeps:
        sweep()


if __name__ == "__main__":
    main()
