"""The frontier of noise fields on masks: what votes, smoothers and correctors win back of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from benchmarks.attacks import mask_correctors
from benchmarks.attacks.frontier import View
from benchmarks.attacks.mask_attack import MaskAttack
from benchmarks.attacks.mask_features import scenes
from benchmarks.attacks.mask_sources import Noise, field_noise, fresh_noise
from benchmarks.attacks.records import Records
from benchmarks.attacks.smoothing import crf, majority
from benchmarks.attacks.sources import FINGERPRINT, secret
from deployments.engines.images.segmenter import ImageSegmenter
from models.make_calibration_sample import load_segmenter
from policies.calibration.calibration import Calibration
from policies.calibration.sample import CalibrationSample

SMOOTHER = "CRF-like smoother"
VOTE, CORRECTOR = "20 usual near-duplicates, vote", "corrector, other drives: answers within 31 pixels"
OWN = "corrector, other drives: its own answer"

MASKS = View(SMOOTHER, OWN, (VOTE,), (0.15, 0.05), VOTE)


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
    deep = MaskField(0.6, 512, metric)
    return {
        f"metric of {width}, ell 0.9, D 128": installed,
        f"metric of {width}, ell 0.9, D 128, not balanced": replace(installed, balance=False),
        f"metric of {width}, ell 0.6, D 128": replace(installed, length_scale=0.6),
        f"metric of {width}, ell 0.6, D 512": deep,
        f"metric of {width}, ell 0.6, D 512, not balanced": replace(deep, balance=False),
        f"metric of {width}, ell 0.4, D 512": replace(deep, length_scale=0.4),
        f"metric of {width // 4}, ell 0.6, D 512": replace(deep, metric=metric[:, -(width // 4) :]),
        "plain, ell 0.8, D 128": MaskField(0.8, 128, None),
    }


def measure(root: Path, folder: Path, secrets: int) -> Records:
    """A vote, two smoothers and two correctors on every field."""
    engine, records = load_segmenter(), Records()
    data = scenes(engine, root, folder / "masks")
    sample = engine.calibration_sample(Path(str(engine.spec.calibration)))
    assert sample.metric is not None
    for number in range(secrets):
        noises = {"fresh": fresh_noise(number, data.examples)}
        for name, field in fields(sample.metric).items():
            noises[name] = _noise(engine, sample, field, number)
        for name, noise in noises.items():
            attack = MaskAttack([noise], data, [])
            reached = {
                VOTE: attack.judge(attack.few),
                "majority, 31 x 31 pixels": attack.judge(majority(one, 31) for one in attack.one),
                SMOOTHER: attack.judge(
                    crf(one, scene.picture) for one, scene in zip(attack.one, data.judged, strict=True)
                ),
                OWN: attack.corrected(mask_correctors.own, "other drives"),
                CORRECTOR: attack.corrected(mask_correctors.near, "other drives"),
                "corrector, other drives: answer and its neighbourhood": attack.corrected(
                    mask_correctors.answers, "other drives"
                ),
            }
            for row, accuracy in reached.items():
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
