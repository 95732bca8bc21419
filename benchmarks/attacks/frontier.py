"""The frontier of noise fields on class labels: what a vote, a corrector and both together win back of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks.attacks.label_attack import LabelAttack
from benchmarks.attacks.label_features import label_features
from benchmarks.attacks.labels import LEVEL, installation
from benchmarks.attacks.records import Records, mean
from benchmarks.attacks.sources import Field, Fresh, Ladder, Sample, Source, scale_for
from models.make_calibration_sample import load_classifier
from policies.attacks.answers import label_and_score

VOTE, CORRECTOR = "vote of 100", "corrector, 6,000 labelled, 2 digits"
BOTH = ("both, pooled", "both, each corrected")
GRANTED = tuple(f"{way}, 2 digits" for way in BOTH)
ANCHORS = 512


class Anchored(Source):
    """Noise that is one constant for all inputs that are nearest to the same of some sampled inputs."""

    def __init__(self, number: int, metric: Tensor, sample: Sample) -> None:
        generator = torch.Generator().manual_seed(number)
        self._metric = metric
        self._anchors = sample.features[torch.randperm(len(sample.features), generator=generator)[:ANCHORS]] @ metric
        self._draw = torch.randn(ANCHORS, sample.logits.shape[1], generator=generator)
        self._scale = scale_for(LEVEL, sample.logits, self._noise(sample.features))

    def __call__(self, features: Tensor, logits: Tensor, level: float, account: int = 0) -> Tensor:
        return logits + self._scale * self._noise(features)

    def _noise(self, features: Tensor) -> Tensor:
        nearest = [torch.cdist(rows @ self._metric, self._anchors).argmin(dim=1) for rows in features.split(4096)]
        return self._draw[torch.cat(nearest)]


def fields(metric: Tensor) -> dict[str, Field]:
    """Fields by name; the metric's columns rise in importance."""
    base = Field(0.7, 512, metric)
    width = metric.shape[1]
    return {
        **{f"plain, ell {ell}": Field(ell, 128) for ell in (0.4, 0.8, 1.6)},
        **{f"metric of {width}, ell {ell}": replace(base, length_scale=ell) for ell in (0.4, 0.6, 0.7, 0.8)},
        f"metric of {width}, ell 0.7, D 128": replace(base, depth=128),
        f"metric of {width // 2}, ell 0.7": replace(base, metric=metric[:, -(width // 2) :]),
    }


def measure(root: Path, folder: Path, secrets: int) -> Records:
    """Three attacks on every field: a vote and both together at default disclosure, correctors with two digits."""
    engine, records = load_classifier(), Records()
    data = label_features(engine, root, folder / "labels")
    sample, head, installed = installation(engine)
    assert installed.metric is not None
    for number in range(secrets):
        sources: dict[str, Source] = {"fresh": Fresh(number, sample)}
        sources |= {
            name: Ladder(number, field, sample, tolerance=0.01) for name, field in fields(installed.metric).items()
        }
        sources[f"{ANCHORS} hard anchors"] = Anchored(number, installed.metric, sample)
        for name, source in sources.items():
            attack = LabelAttack(source, LEVEL, data, head, len(engine.classes))
            records.add(name, VOTE, attack.share(attack.vote(attack.judged)))
            records.add(name, CORRECTOR, attack.share(attack.corrector(label_and_score)))
            for ways, digits in ((BOTH, 0), (GRANTED, 2)):
                for way, run in zip(ways, (attack.both, attack.both_by_query), strict=True):
                    records.add(name, way, attack.share(run(digits)))
        records.save(folder / "frontier.json")
    return records


@dataclass(frozen=True)
class View:
    """Which attacks a frontier is drawn in; limits are what was asked for."""

    x: str
    y: str
    colour: Sequence[str]
    limits: tuple[float, float]
    title: str


LABELS = View(VOTE, CORRECTOR, BOTH, (0.15, 0.05), "both together, 600 labelled")


def draw(records: Records, path: Path, view: View) -> None:
    """One attack against another, coloured by a third and numbered: shares of the gap that are won back."""
    figure, (axes, names) = plt.subplots(1, 2, figsize=(11, 5.5), width_ratios=(3, 1.3))
    rows = records.values.values()
    x, y = ([mean(row[k]) for row in rows] for k in (view.x, view.y))
    colour = [max(mean(row[way]) for way in view.colour) for row in rows]
    points = axes.scatter(x, y, c=colour, cmap="viridis_r", s=190, zorder=3, edgecolors="white")
    for number, place in enumerate(zip(x, y, strict=True), start=1):
        axes.annotate(
            str(number), place, ha="center", va="center", fontsize=8, zorder=4,
            bbox={"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
        )  # fmt: skip
    axes.axvline(view.limits[0], color="grey", linewidth=0.8, linestyle="--")
    axes.axhline(view.limits[1], color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlabel(f"{view.x} (share of the gap won back; dashed: asked at most)")
    axes.set_ylabel(view.y)
    figure.colorbar(points, label=view.title)
    listed = [f"{n}  {name}: {c:.2f}" for n, (name, c) in enumerate(zip(records.values, colour, strict=True), start=1)]
    names.axis("off")
    names.text(0, 1, "\n".join([f"{view.title}:", "", *listed]), va="top", fontsize=9, linespacing=1.5)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
