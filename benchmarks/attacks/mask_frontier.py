"""The frontier of noise fields on masks: what the strongest attacks at default terms win back of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from benchmarks.attacks import mask_correctors
from benchmarks.attacks.frontier import View
from benchmarks.attacks.mask_attack import MaskAttack
from benchmarks.attacks.mask_encoders import FOREIGN, OWN, encoders, unlabelled
from benchmarks.attacks.mask_features import OTHER, scenes
from benchmarks.attacks.mask_sources import Noise, field_noise, fresh_noise
from benchmarks.attacks.mask_students import HEADS, STRONGEST, MaskStudents
from benchmarks.attacks.records import Records
from benchmarks.attacks.smoothing import crf
from benchmarks.attacks.sources import FINGERPRINT, secret
from deployments.engines.images.segmenter import ImageSegmenter
from models.make_calibration_sample import load_segmenter
from policies.calibration.calibration import Calibration
from policies.calibration.sample import CalibrationSample

SMOOTHER, VOTE = "CRF-like smoother", "20 usual near-duplicates, vote"
CORRECTOR = "corrector, other drives: answers within 31 pixels"
ANSWER = "corrector, other drives: its own answer"
STUDENT, FOREIGN_STUDENT = (f"student, {name}: 367 pictures" for name in (OWN, FOREIGN))
EVERYTHING = f"student, {FOREIGN}, in a corrector, {OTHER}: answers, place and colour"
WITHOUT_LABELS = "strongest without labels"

MASKS = View(STUDENT, CORRECTOR, (WITHOUT_LABELS,), (0.47, 0.15), WITHOUT_LABELS)


@dataclass(frozen=True)
class MaskField:
    """A noise field: length scale in median distances, depth, metric [H, m], and whether levels are balanced."""

    length_scale: float
    depth: int
    metric: Tensor | None
    balance: bool = True


def fields(metric: Tensor) -> dict[str, MaskField]:
    """Fields by name, the installed one first; the metric's columns rise in importance."""
    installed, width = MaskField(0.9, 128, metric), metric.shape[1]
    return {
        f"metric of {width}, ell 0.9, D 128": installed,
        f"metric of {width}, ell 0.9, D 128, not balanced": replace(installed, balance=False),
        f"metric of {width}, ell 0.6, D 512": MaskField(0.6, 512, metric),
        f"metric of {width}, ell 1.4, D 128": replace(installed, length_scale=1.4),
        f"metric of {width}, ell 1.4, D 128, not balanced": replace(installed, length_scale=1.4, balance=False),
        **{f"plain, ell {ell}, D 128": MaskField(ell, 128, None) for ell in (0.8, 1.6, 2.4)},
        **{f"plain, ell {ell}, D 128, not balanced": MaskField(ell, 128, None, False) for ell in (1.6, 2.4)},
    }


def measure(root: Path, folder: Path, secrets: int) -> Records:
    """A vote, a smoother, two correctors and the strongest students on every field."""
    engine, records, cache = load_segmenter(), Records(), folder / "masks"
    data, seen = scenes(engine, root, cache), encoders(engine, root, cache)
    pictures = unlabelled(engine, root, cache)
    sample = engine.calibration_sample(Path(str(engine.spec.calibration)))
    assert sample.metric is not None
    for number in range(secrets):
        noises = {"fresh": fresh_noise(number, data.examples)}
        for name, field in fields(sample.metric).items():
            noises[name] = _noise(engine, sample, field, number)
        for name, noise in noises.items():
            attack = MaskAttack([noise], data, [])
            students = MaskStudents(attack, pictures, seen)
            smoothed = [crf(one, scene.picture) for one, scene in zip(attack.one, data.judged, strict=True)]
            won = {
                VOTE: attack.judge(attack.few),
                SMOOTHER: attack.judge(smoothed),
                **{
                    row: students.fitted(encoder, HEADS[encoder][STRONGEST[encoder]])
                    for row, encoder in ((STUDENT, OWN), (FOREIGN_STUDENT, FOREIGN))
                    if encoder in seen
                },
            }
            won[WITHOUT_LABELS] = max(won.values())
            won[ANSWER] = attack.corrected(mask_correctors.own, OTHER)
            won[CORRECTOR] = attack.corrected(mask_correctors.near, OTHER)
            if FOREIGN in seen:
                won[EVERYTHING] = students.in_corrector(FOREIGN, OTHER)
            for row, accuracy in won.items():
                records.add(name, row, attack.share(accuracy))
            records.save(folder / "mask-frontier.json")
    return records


def _noise(engine: ImageSegmenter, sample: CalibrationSample, field: MaskField, number: int) -> Noise:
    calibration = Calibration.fit(
        secret(number),
        FINGERPRINT,
        sample.features,
        sample.logits,
        depth=field.depth,
        relative_length_scale=field.length_scale,
        metric=field.metric,
        block=engine.scheme.block,
        field_features=sample.field_features,
        readout=sample.readout,
        balance=field.balance,
        tolerance=engine.scheme.tolerance,
    )
    return field_noise(engine, calibration, number)
