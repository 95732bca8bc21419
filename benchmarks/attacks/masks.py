"""Attacks on masks: street scenes that neither trained nor calibrated the segmenter, judged by pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from benchmarks.attacks.mask_attack import ACCOUNTS, REPEATS, MaskAttack, temperature
from benchmarks.attacks.mask_encoders import Encoded, encoders, unlabelled
from benchmarks.attacks.mask_features import Scene, Scenes, scenes
from benchmarks.attacks.mask_levels import MaskLevels
from benchmarks.attacks.mask_segmenter import MaskSegmenters
from benchmarks.attacks.mask_sources import Noise, fresh_noise, ladders
from benchmarks.attacks.mask_students import MaskStudents
from benchmarks.attacks.records import Records
from benchmarks.attacks.smoothing import mean_shift_segments
from models.make_calibration_sample import load_segmenter

ROWS = ("all", "answers", "correctors", "levels", "students", "segmenters")
Rows = dict[str, Callable[[], float]]


@dataclass
class Material:
    """What attackers have, and which of them are measured.

    Attributes:
        segments: of each judged picture.
        pictures: the attacker's own, without labels.
        chosen: of `ROWS`.
        reached: accuracies of what is the same under every secret: clean answers, and labels without any answer.
    """

    data: Scenes
    level: float
    chosen: str
    segments: list[Tensor] = field(default_factory=list)
    pictures: Sequence[Scene] = ()
    encoders: dict[str, Encoded] = field(default_factory=dict)
    reached: dict[str, float] = field(default_factory=dict)

    def has(self, *names: str) -> bool:
        """Whether one of some groups of rows is measured."""
        return self.chosen in ("all", *names)

    def attack(self, noises: list[Noise]) -> MaskAttack:
        """Attacks on sources of noise."""
        return MaskAttack(noises, self.data, self.segments, self.level)

    def rows(self, attack: MaskAttack) -> Rows:
        """What one account, or one and a key of level 1.0, can do."""
        return self._chosen(
            answers=attack.one_account,
            correctors=attack.curved_correctors,
            levels=lambda: MaskLevels(attack).rows(),
        ) | self.students(attack)

    def clean_rows(self, attack: MaskAttack) -> Rows:
        """Those of them that clean answers help: no filters, votes or levels."""
        return self._chosen(
            answers=attack.correctors,
            correctors=attack.curved_correctors,
            levels=lambda: MaskLevels(attack).gold_rows(),
        ) | self.students(attack)

    def students(self, attack: MaskAttack) -> Rows:
        """All that learn from many answers."""
        return self._chosen(
            students=lambda: MaskStudents(attack, self.pictures, self.encoders).rows(),
            segmenters=lambda: MaskSegmenters(attack, self.pictures).rows(),
        )

    def _chosen(self, **groups: Callable[[], Rows]) -> Rows:
        rows: Rows = {}
        for name, make in groups.items():
            if self.has(name):
                rows |= make()
        return rows

    def alone(self, attack: MaskAttack) -> Rows:
        """What labels are worth without any answer."""
        rows: Rows = {}
        if self.has("students"):
            rows |= MaskStudents(attack, (), self.encoders).alone()
        if self.has("segmenters"):
            rows |= MaskSegmenters(attack, ()).alone()
        return rows


def measure(root: Path, folder: Path, secrets: int, level: float, chosen: str) -> Records:
    """Attacks against the ladder under every secret, against the other sources under one.

    Args:
        chosen: which attacks, of `ROWS`.
    """
    engine, cache = load_segmenter(), folder / "masks"
    material = Material(scenes(engine, root, cache), level, chosen)
    if material.has("answers"):
        material.segments = [mean_shift_segments(scene.picture) for scene in material.data.judged]
    if material.has("students"):
        material.encoders = encoders(engine, root, cache)
    if material.has("students", "segmenters"):
        material.pictures = unlabelled(engine, root, cache)
    sample, records = engine.calibration_sample(Path(str(engine.spec.calibration))), Records()
    clean = material.attack([lambda scene, queries, _: scene.logits[queries].float()])
    alone, best = Records(), Records()
    alone.run("labels alone", material.alone(clean))
    best.run("clean answers", material.clean_rows(clean))
    for number in range(secrets):
        if number == 0:
            _others(records, material, ladders(engine, sample, number, ACCOUNTS) if material.has("answers") else [])
        ladder = material.attack(ladders(engine, sample, number, 1))
        records.add("(accuracy of one answer)", "ladder", ladder.single())
        records.add("(accuracy of one answer)", "clean answers", ladder.clean())
        records.run("ladder", _shared(ladder, material.rows(ladder)))
        for source, reached in (("clean answers", best), ("labels alone", alone)):
            for name, values in reached.values.items():
                records.add(name, source, ladder.share(values[source][0]))
        records.save(folder / f"masks-{chosen}-{level}.json")
    return records


def _others(records: Records, material: Material, keys: list[Noise]) -> None:
    """Fresh noise, and where answers alone are measured temperature and a key for each tenant."""
    fresh = material.attack([fresh_noise(0, material.data.examples)])
    records.add("(accuracy of one answer)", "fresh", fresh.single())
    records.run("fresh", _shared(fresh, material.rows(fresh)))
    if keys:
        records.run("temperature", {REPEATS: partial(temperature, fresh, 0)})
        several = material.attack(keys)
        records.run("key per tenant", _shared(several, {f"{ACCOUNTS} accounts, vote": several.accounts}))


def _shared(attack: MaskAttack, rows: Rows) -> Rows:
    return {name: partial(lambda run: attack.share(run()), run) for name, run in rows.items()}
