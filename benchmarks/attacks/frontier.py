"""The frontier of noise fields on class labels: what the strongest attacks win back of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
from torch import Tensor

from benchmarks.attacks.label_attack import LabelAttack
from benchmarks.attacks.label_features import label_features
from benchmarks.attacks.label_students import ANSWERS, LabelStudents, worth_alone
from benchmarks.attacks.labels import FOREIGN, LEVEL, OWN, installation, label_encoders
from benchmarks.attacks.records import Records, mean
from benchmarks.attacks.sources import Clean, Field, Fresh, Ladder, Source
from deployments.engines.images.sample import read_features
from models.make_calibration_sample import load_classifier
from policies.attacks.answers import label_and_score

VOTE, SCORES = "vote of 100", "granted 2 digits: corrector, 6,000 labelled"
BOTH = "both: 20 queries, 600 labelled, the better of two"
STUDENT = f"student, {OWN}: strongest on 1,000 or 4,000 answers"
ASSISTED = f"answer and {FOREIGN}, 600 labelled"
EVERYTHING = f"20 queries, student and {FOREIGN}, 600 labelled"
STRONGEST = "strongest at default terms"


def fields(metric: Tensor) -> dict[str, Field]:
    """Fields by name; the metric's columns rise in importance."""
    base = Field(1.0, 512, metric)
    width = metric.shape[1]
    return {
        **{f"metric of {width}, ell {ell}": replace(base, length_scale=ell) for ell in (0.7, 1.0, 1.2, 2.0)},
        f"metric of {width}, ell 1.0, balanced": replace(base, balance=True),
        **{f"plain, ell {ell}": Field(ell, 512) for ell in (0.8, 1.2, 1.6, 2.0, 3.0)},
    }


def measure(root: Path, folder: Path, secrets: int) -> Records:
    """The strongest attacks at default terms on every field, and what granted scores would cost beside them."""
    engine, records = load_classifier(), Records()
    data = label_features(engine, root, folder / "labels")
    sample, head, _ = installation(engine)
    _, metric, _ = read_features(Path(str(engine.spec.calibration)))
    assert metric is not None
    clean = LabelAttack(Clean(), LEVEL, data, head, len(engine.classes))
    encoders = label_encoders(data, root, folder / "labels" / "foreign", len(engine.classes))
    alone = worth_alone({name: encoders[name] for name in encoders if name == FOREIGN}, clean)
    for number in range(secrets):
        sources: dict[str, Source] = {"fresh": Fresh(number, sample)}
        sources |= {name: Ladder(number, field, sample, 0.01) for name, field in fields(metric).items()}
        for name, source in sources.items():
            attack = LabelAttack(source, LEVEL, data, head, len(engine.classes))
            students = LabelStudents(attack, encoders, alone)
            won = {
                VOTE: attack.share(attack.vote(attack.judged)),
                BOTH: attack.share(max(attack.both(), attack.both_by_query())),
                STUDENT: max(students.fitted(OWN, count) for count in ANSWERS),
                **(
                    {ASSISTED: students.assisted(FOREIGN, 600), EVERYTHING: students.everything(FOREIGN)}
                    if alone
                    else {}
                ),
            }
            won[STRONGEST] = max(won.values())
            won[SCORES] = attack.share(attack.corrector(label_and_score))
            for row, share in won.items():
                records.add(name, row, share)
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


LABELS = View(STUDENT, EVERYTHING, (STRONGEST,), (0.5, 0.5), STRONGEST)


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
    axes.set_xlabel(f"{view.x}\n(shares of the gap won back; dashed: asked at most)")
    axes.set_ylabel(view.y)
    figure.colorbar(points, label=view.title)
    listed = [f"{n}  {name}: {c:.2f}" for n, (name, c) in enumerate(zip(records.values, colour, strict=True), start=1)]
    names.axis("off")
    names.text(0, 1, "\n".join([f"{view.title}:", "", *listed]), va="top", fontsize=9, linespacing=1.5)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
