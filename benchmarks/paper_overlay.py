"""This project's curves laid on those of the paper's authors (AIM, arXiv 2603.12755) after one scale of sigma.

Models differ in how good they are without noise and in how many classes they have, so a curve is laid both as it is
and between chance and the clean value, (value - chance) / (clean - chance). The scale is fitted by least squares on
the closed form, over the sigmas of the authors' logs. What a scale cannot change is how unequal a model's margins are:
for that, the normal distribution of margins is given under which a row of equal runners-up gives the curve.

Usage: python benchmarks/paper_overlay.py --cifar DIR --camvid DIR [--foreign FILE ...] [--out DIR]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from deployments.config import REPOSITORY
from policies.closed_form import agreement
from policies.reference import independent_utility

sys.path.insert(0, str(REPOSITORY / "models"))
sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from cifar_resnet import load, logits_of
from levels import final_inputs
from make_calibration_sample import cifar_held_back, load_classifier, load_segmenter
from paper_support import finish, winning

Array = npt.NDArray[np.float64]
SIGMAS = np.array([2.0, 4.0, 6.0, 8.0, 10.0, 20.0])
SCALES = np.geomspace(0.05, 4.0, 2000)
SPREADS = np.linspace(0.0, 1.5, 31)
VOID, EVERY = 11, 8
"""Of a map's cells, one in so many is taken for the closed form."""
MARKS = "osd^v"


@dataclass(frozen=True)
class Curve:
    """A measure of quality against the standard deviation of independent noise.

    Attributes:
        clean: without noise.
        chance: of an answer drawn among all `classes`.
        sigmas: where `values` are known, rising.
    """

    name: str
    clean: float
    chance: float
    classes: int
    sigmas: Array
    values: Array

    @property
    def relative(self) -> Curve:
        """The same between chance, 0, and clean, 1."""
        return Curve(
            self.name, 1.0, 0.0, self.classes, self.sigmas, (self.values - self.chance) / (self.clean - self.chance)
        )

    def at(self, sigmas: Array) -> Array:
        """Linear in the logarithm of sigma."""
        return np.interp(np.log(sigmas), np.log(self.sigmas), self.values)

    def fit(self, authors: Curve) -> tuple[float, Array]:
        """What the authors' sigmas are to be multiplied by, and what is left between the curves there."""
        scale = min(SCALES, key=lambda s: float(((self.at(s * SIGMAS) - authors.values) ** 2).sum()))
        return float(scale), self.at(scale * SIGMAS) - authors.values


CIFAR = Curve(
    "the authors' ResNet-56, CIFAR-10",
    0.9437,
    0.1,
    10,
    SIGMAS,
    np.array([0.9338, 0.8232, 0.6221, 0.4799, 0.3855, 0.2209]),
)
ADE20K = Curve(
    "the authors' SegFormer-B2, ADE20K",
    0.462,
    1 / 299,
    150,
    SIGMAS,
    np.array([0.384, 0.243, 0.133, 0.076, 0.047, 0.012]),
)
"""Chance by mean IoU is at most 1 / (2 K - 1), which it is for 150 classes equally frequent."""


def margins_of(curve: Curve) -> tuple[float, float]:
    """Mean margin, in the authors' sigma, and spread over mean of the normal distribution that fits a relative curve.

    A row's runners-up are taken to be equal, a margin below 0 to be 0.
    """
    grid = torch.cat([torch.zeros(1), torch.logspace(-2.0, 1.5, 200)]).double()
    rows = torch.zeros(len(grid), curve.classes, dtype=torch.float64)
    rows[:, 0] = grid
    kept = (agreement(rows, 1.0).numpy() - 1 / curve.classes) / (1 - 1 / curve.classes)
    u = np.linspace(-3.0, 3.0, 61)
    weight = np.exp(-0.5 * u * u) / np.exp(-0.5 * u * u).sum()

    def off(mean: float, spread: float) -> float:
        margin = np.clip(mean * (1.0 + spread * u), 0.0, None)
        values = np.interp(margin[None] / SIGMAS[:, None], grid.numpy(), kept) @ weight
        return float(((values - curve.at(SIGMAS)) ** 2).sum())

    return min(((m, s) for m in np.linspace(2.0, 40.0, 153) for s in SPREADS), key=lambda pair: off(*pair))


def accuracy_curves(name: str, logits: Tensor, truth: Tensor) -> tuple[Curve, Curve]:
    """Closed form and independent noise, drawn five times, of logits [N, 10]."""
    sigmas, generator = np.geomspace(0.2, 60.0, 30), torch.Generator().manual_seed(0)
    clean = float((logits.argmax(dim=1) == truth).double().mean())
    lines = [float(winning(logits, s).gather(1, truth[:, None]).mean()) for s in sigmas]
    points = [
        np.mean(
            [float((independent_utility(logits, s, generator).argmax(1) == truth).double().mean()) for _ in range(5)]
        )
        for s in sigmas
    ]
    return tuple(Curve(name, clean, 0.1, 10, sigmas, np.array(found)) for found in (lines, points))  # type: ignore[return-value]


@torch.inference_mode()
def classification(root: Path, foreign: Sequence[Path]) -> dict[str, tuple[Curve, Curve]]:
    """Of the shipped ResNet-18, and of checkpoints trained on clean CIFAR-10, on the held-back pictures."""
    held_back = cifar_held_back(root)
    files, truth = [file for file, _ in held_back], torch.tensor([k for _, k in held_back])
    engine = load_classifier()
    own = engine.final(torch.cat([x for x, _ in final_inputs(engine, files)])).float()
    found = {"ResNet-18": own}
    for path in foreign:
        depth = path.stem.partition("-")[0].removeprefix("resnet")
        found[f"foreign ResNet-{depth}"] = logits_of(load(path), files)
    return {name: accuracy_curves(name, logits, truth) for name, logits in found.items()}


def mean_iou(confusion: Tensor) -> float:
    """Of [K, K], the true classes down."""
    hits = confusion.diag()
    return float((hits / (confusion.sum(0) + confusion.sum(1) - hits)).mean())


@torch.inference_mode()
def segmentation(root: Path) -> dict[str, tuple[Curve, Curve]]:
    """At the logits' own resolution, and with noise there and the answer read at the picture's size."""
    engine, files = load_segmenter(), sorted((root / "val" / "images").iterdir())
    logits = torch.cat([engine.final(x).float() for x, _ in final_inputs(engine, files)])
    masks = [Image.open(file.parents[1] / "labels" / f"{file.stem}.png") for file in files]
    small = [mask.resize((logits.shape[3], logits.shape[2]), Image.Resampling.NEAREST) for mask in masks]
    truth = torch.stack([torch.from_numpy(np.array(mask)) for mask in small]).long().flatten()
    whole = torch.stack([torch.from_numpy(np.array(mask)) for mask in masks]).long()
    rows, classes = logits.movedim(1, -1).flatten(0, -2), logits.shape[1]
    some = (truth < VOID).nonzero()[::EVERY, 0]

    def counted(truth: Tensor, answer: Tensor) -> Tensor:
        known = truth < VOID
        return (
            torch.bincount(truth[known] * classes + answer[known], minlength=classes**2).reshape(classes, -1).double()
        )

    def expected(sigma: float) -> Tensor:
        chances = winning(rows[some], sigma) if sigma else F.one_hot(rows[some].argmax(1), classes).double()
        return torch.zeros(classes, classes, dtype=torch.float64).index_add_(0, truth[some], chances)

    def upsampled(maps: Tensor) -> Tensor:
        pairs = zip(maps[::2].split(4), whole[::2].split(4), strict=True)
        size = whole.shape[1:]
        return sum(counted(t, F.interpolate(z, size, mode="bilinear").argmax(1)) for z, t in pairs)  # type: ignore[return-value]

    generator = torch.Generator().manual_seed(0)
    share = expected(0.0).sum(1) / len(some)
    chance = float((share / (classes * share + 1.0 - share)).mean())
    sigmas = np.geomspace(0.3, 30.0, 16)
    measures: dict[str, Callable[[float], Tensor]] = {
        "closed": expected,
        "independent": lambda s: counted(truth, independent_utility(rows, s, generator).argmax(1)),
        "upsampled": lambda s: upsampled(independent_utility(logits, s, generator)),
    }
    found = {}
    for name, measure in measures.items():
        values = np.array([mean_iou(measure(s)) for s in sigmas])
        found[name] = Curve("SegFormer-B0, CamVid", mean_iou(measure(0.0)), chance, classes, sigmas, values)
    read = found["upsampled"]
    return {
        "SegFormer-B0": (found["closed"], found["independent"]),
        "SegFormer-B0, read at the picture's size": (read, read),
    }


def report(found: dict[str, tuple[Curve, Curve]], authors: Curve) -> None:
    """The largest deviations, and the margins that the curves speak of."""
    print(f"\n{authors.name}: margins {_margins(authors.relative)}\n")
    print("| model | clean | as it is: scale, largest deviation closed form / noise | the same relative | margins |")
    print("|---|---|---|---|---|")
    for name, (line, points) in found.items():
        cells = [name, f"{line.clean:.4f}"]
        for own, drawn, theirs in ((line, points, authors), (line.relative, points.relative, authors.relative)):
            scale, left = own.fit(theirs)
            noise = drawn.at(scale * SIGMAS) - theirs.values
            cells.append(f"{scale:.3f}, {_largest(left)} / {_largest(noise)}")
        relative = line.relative
        scale = relative.fit(authors.relative)[0]
        moved = Curve(name, 1.0, 0.0, line.classes, relative.sigmas / scale, relative.values)
        print(f"| {' | '.join(cells)} | {_margins(moved)} |", flush=True)


def _largest(left: Array) -> str:
    at = int(np.abs(left).argmax())
    return f"{left[at]:+.4f} at {SIGMAS[at]:g}"


def _margins(relative: Curve) -> str:
    mean, spread = margins_of(relative)
    return f"{mean:.2f} ± {spread * mean:.2f}"


def draw(axis: Any, found: dict[str, tuple[Curve, Curve]], authors: Curve, relative: bool, title: str) -> None:
    """Lines of the closed form and marks of the noise at the authors' sigmas, black dots the authors'."""
    theirs = authors.relative if relative else authors
    axis.plot(SIGMAS, theirs.values, "k*", markersize=9, label=theirs.name, zorder=3)
    x = np.geomspace(1.0, 25.0, 100)
    for number, (name, pair) in enumerate(found.items()):
        line, points = (curve.relative if relative else curve for curve in pair)
        scale = line.fit(theirs)[0]
        axis.plot(x, line.at(scale * x), color=f"C{number}", label=f"{name}, sigma / {scale:.2f}")
        axis.plot(SIGMAS, points.at(scale * SIGMAS), MARKS[number], color=f"C{number}", markersize=4, fillstyle="none")
    axis.set(xscale="log", xlabel="sigma of the authors' logs", ylim=(0.0, 1.02 * max(theirs.clean, 0.6)), title=title)
    axis.set_xticks(SIGMAS, [f"{sigma:g}" for sigma in SIGMAS])
    axis.minorticks_off()
    axis.legend(fontsize=6.5)


def main() -> None:
    """Measure, print tables and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True, help="folder that holds train/<class>/*.jpg")
    parser.add_argument("--camvid", type=Path, required=True, help="folder that holds val/images and val/labels")
    parser.add_argument("--foreign", type=Path, nargs="*", default=[], help="checkpoints of akamaster's repository")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs", help="where the picture goes")
    arguments = parser.parse_args()
    pictures, maps = classification(arguments.cifar, arguments.foreign), segmentation(arguments.camvid)
    report(pictures, CIFAR)
    report(maps, ADE20K)
    figure, axes = plt.subplots(1, 3, figsize=(13.0, 4.2))
    draw(axes[0], pictures, CIFAR, False, "accuracy")
    draw(axes[1], pictures, CIFAR, True, "accuracy, between chance and clean")
    draw(axes[2], maps, ADE20K, True, "mean IoU, between chance and clean")
    finish(figure, axes[0], arguments.out / "paper_overlay.png", "Independent noise, after one scale of sigma")


if __name__ == "__main__":
    main()
