"""Focus for every CamVid class, several at once, and favour with avoid: recall gained against mean IoU lost.

*Served* is what the head does, with strengths, where a class contends; *raw* the paper's one-sided noise on every row
(AIM, arXiv 2603.12755), with a standard deviation. Judged at the logits' own resolution, on the pictures that did not
calibrate; mean IoU is over all classes, the focused ones included.

Usage: python benchmarks/focus_classes.py --camvid DIR [--out DIR]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deployments.config import REPOSITORY
from deployments.engines.images.segmenter import ImageSegmenter
from policies.head.slots import Setting
from policies.reference import independent_focus

sys.path.insert(0, str(REPOSITORY / "models"))
sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from focus import VOID, calibrated
from levels import final_inputs
from make_calibration_sample import camvid_validation, load_segmenter
from paper_support import finish

STRENGTHS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99)
STDS = (0.15, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.5)
SHOWN = (0.2, 0.5, 0.9)
LINES = (("o-", (3, -10), "served, by strength"), ("s--", (-4, 5), "raw, on every row, by std"))
RARE = 0.025
"""Share of pixels below which a class is called rare."""
COST = 1.0 - 45.85 / 46.2
"""What the paper's focus costs at most, as a share of the clean mean IoU."""


@dataclass(frozen=True)
class Scores:
    """Of one way to answer: recall and IoU of each class [K], and the mean IoU."""

    recall: Tensor
    iou: Tensor

    @property
    def mean(self) -> float:
        """Mean IoU."""
        return float(self.iou.mean())


class Maps(NamedTuple):
    """Pictures at the logits' resolution: features [B, H, h, w], clean logits [B, K, h, w], truth [B * h * w]."""

    features: Tensor
    logits: Tensor
    truth: Tensor

    def scores(self, logits: Tensor) -> Scores:
        """Of logits [B, K, h, w]."""
        classes, known = logits.shape[1], self.truth < VOID
        pairs = self.truth[known] * classes + logits.argmax(dim=1).flatten()[known]
        confusion = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).double()
        hits, there = confusion.diag(), confusion.sum(1)
        return Scores(hits / there, hits / (there + confusion.sum(0) - hits))


Signs = Mapping[int, int]
"""Classes to favour, 1, or to avoid, -1."""


def maps_of(engine: ImageSegmenter, files: Sequence[Path]) -> Maps:
    """Every picture's labels are brought to the logits' resolution."""
    features = torch.cat([x for x, _ in final_inputs(engine, files)])
    size = features.shape[3], features.shape[2]
    labels = [Image.open(file.parents[1] / "labels" / f"{file.stem}.png") for file in files]
    truth = [torch.from_numpy(np.array(label.resize(size, Image.Resampling.NEAREST))) for label in labels]
    return Maps(features, engine.clean_logits(features), torch.stack(truth).long().flatten())


def served(engine: ImageSegmenter, maps: Maps, signs: Signs, strength: float) -> Tensor:
    """Logits [B, K, h, w] as the head answers a focus of that strength."""
    engine.head.write_everyone(Setting(focus={k: sign * strength for k, sign in signs.items()}))
    parts = zip(maps.features.split(10), maps.logits.split(10), strict=True)
    return torch.cat([engine.head.forward(f, z, engine.head.slots_of(len(z))).logits for f, z in parts])


def raw(maps: Maps, signs: Signs, std: float, generator: torch.Generator) -> Tensor:
    """Logits [B, K, h, w] with half-normal noise on every row."""
    size, rows = maps.logits.shape, maps.logits.movedim(1, -1).flatten(0, -2)
    for k, sign in signs.items():
        rows = independent_focus(rows, torch.tensor([k]), sign * std, generator)
    return rows.reshape(size[0], size[2], size[3], size[1]).movedim(-1, 1)


@torch.inference_mode()
def sweep(engine: ImageSegmenter, maps: Maps, signs: Signs) -> tuple[list[Scores], list[Scores]]:
    """Served at each of `STRENGTHS`, raw at each of `STDS`; the clean answer before both."""
    generator, clean = torch.Generator().manual_seed(0), maps.scores(maps.logits)
    head = [maps.scores(served(engine, maps, signs, strength)) for strength in STRENGTHS]
    return [clean, *head], [clean, *(maps.scores(raw(maps, signs, std, generator)) for std in STDS)]


def within(cost: float, found: Sequence[Scores], k: int) -> float:
    """The recall of a class where a share `cost` of the clean mean IoU is first lost; linear between points."""
    for before, after in zip(found, found[1:], strict=False):
        lost = [1.0 - scores.mean / found[0].mean for scores in (before, after)]
        if lost[1] > cost:
            share = (cost - lost[0]) / (lost[1] - lost[0])
            return float(before.recall[k] + share * (after.recall[k] - before.recall[k]))
    return float(found[-1].recall[k])


def table(names: Sequence[str], shares: Tensor, found: Mapping[int, tuple[list[Scores], list[Scores]]]) -> None:
    """Every class alone."""
    shown = [f"{s:+}: recall, IoU, mean IoU" for s in SHOWN]
    cost = f"recall at {COST:.2%} less mean IoU: served, raw"
    print(f"| class | pixels | clean recall, IoU | {' | '.join(shown)} | {cost} |\n|---|---|---|---|---|---|")
    for k in sorted(found, key=lambda k: float(shares[k])):
        head, noise = found[k]
        cells = [f"{head[0].recall[k]:.3f} {head[0].iou[k]:.3f}"]
        for strength in SHOWN:
            at = head[1 + STRENGTHS.index(strength)]
            cells.append(f"{at.recall[k]:.3f} {at.iou[k]:.3f} {at.mean:.4f}")
        cells.append(f"{within(COST, head, k):.3f} {within(COST, noise, k):.3f}")
        print(f"| {names[k]} | {shares[k]:.2%} | {' | '.join(cells)} |", flush=True)


def groups(names: Sequence[str], shares: Tensor) -> dict[str, Signs]:
    """Several classes at once."""
    at = names.index
    rare = [k for k in range(len(names)) if shares[k] < RARE]
    return {
        "pedestrian and bicyclist": {at("pedestrian"): 1, at("bicyclist"): 1},
        f"all rare: {', '.join(names[k] for k in rare)}": dict.fromkeys(rare, 1),
        "pedestrian, not building": {at("pedestrian"): 1, at("building"): -1},
        "bicyclist, not pedestrian": {at("bicyclist"): 1, at("pedestrian"): -1},
        "car, neither road nor building": {at("car"): 1, at("road"): -1, at("building"): -1},
    }


def group_line(name: str, signs: Signs, names: Sequence[str], pair: tuple[list[Scores], list[Scores]]) -> None:
    """One line a strength: the recalls of all that are named, and the mean IoU."""
    head = pair[0]
    for strength in (0.0, *SHOWN):
        scores = head[1 + STRENGTHS.index(strength)] if strength else head[0]
        recalls = ", ".join(f"{names[k]} {scores.recall[k]:.3f}" for k in signs)
        print(f"| {name} | {strength} | {recalls} | {scores.mean:.4f} |", flush=True)


def draw(
    names: Sequence[str], found: Mapping[int, tuple[list[Scores], list[Scores]]], shares: Tensor, out: Path
) -> None:
    """A small picture a class, rare ones first; the dotted line is what the paper's focus costs at most."""
    figure, axes = plt.subplots(3, 4, figsize=(12.0, 8.4))
    for axis, k in zip(axes.flat, sorted(found, key=lambda k: float(shares[k])), strict=False):
        for colour, (scores, values, shown) in enumerate(
            zip(found[k], (STRENGTHS, STDS), ((0.2, 0.5, 0.9), (1.0, 3.0)), strict=True)
        ):
            style, offset, _ = LINES[colour]
            lost = [100.0 * (scores[0].mean - s.mean) for s in scores]
            recall = [float(s.recall[k]) for s in scores]
            axis.plot(lost, recall, style, color=f"C{colour}", markersize=3.5, linewidth=1.2)
            for value in shown:
                at = lost[1 + values.index(value)], recall[1 + values.index(value)]
                axis.annotate(f"{value:g}", at, offset, textcoords="offset points", fontsize=7, color=f"C{colour}")
        axis.axvline(100.0 * COST * found[k][0][0].mean, color="grey", linewidth=0.7, linestyle=":")
        axis.set_title(f"{names[k]} ({shares[k]:.1%} of pixels)", fontsize=9)
        axis.set_xscale("symlog", linthresh=0.5)
        axis.set_xticks([0, 0.5, 2, 10], ["0", "0.5", "2", "10"])
        axis.set_xlim(-0.9, 20.0)
        axis.margins(y=0.15)
        axis.grid(alpha=0.25)
    for axis in axes[:, 0]:
        axis.set_ylabel("recall of the class")
    for axis in [*axes[2, :3], axes[1, 3]]:
        axis.set_xlabel("points of mean IoU lost")
    axes[2, 3].axis("off")
    for colour, (style, _, label) in enumerate(LINES):
        axes[2, 3].plot([], [], style, color=f"C{colour}", label=label)
    finish(figure, axes[2, 3], out / "focus_classes.png", "Focus on each class: recall gained, mean IoU lost")


def main() -> None:
    """Measure, print tables and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, required=True, help="folder that holds val/images and val/labels")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs", help="where the picture goes")
    arguments = parser.parse_args()
    engine, files = load_segmenter(), camvid_validation(arguments.camvid)[1]
    calibrated(engine)
    maps, names = maps_of(engine, files), engine.classes
    shares = torch.bincount(maps.truth[maps.truth < VOID], minlength=len(names)) / (maps.truth < VOID).sum()
    print(f"clean mean IoU {maps.scores(maps.logits).mean:.4f}\n")
    found = {k: sweep(engine, maps, {k: 1}) for k in range(len(names))}
    table(names, shares, found)
    draw(names, found, shares, arguments.out)
    print("| focus | strength | recall | mean IoU |\n|---|---|---|---|")
    for name, signs in groups(names, shares).items():
        group_line(name, signs, names, sweep(engine, maps, signs))


if __name__ == "__main__":
    main()
