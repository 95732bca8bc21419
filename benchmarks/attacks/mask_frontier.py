"""The frontier of noise fields on masks: what votes, smoothers and correctors win back of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from benchmarks.attacks import mask_correctors
from benchmarks.attacks.frontier import View
from benchmarks.attacks.mask_features import Scene, scenes
from benchmarks.attacks.mask_sources import Noise, add_field, fresh_noise, solved_position
from benchmarks.attacks.masks import MaskAttack
from benchmarks.attacks.records import Records
from benchmarks.attacks.smoothing import crf, majority
from benchmarks.attacks.sources import FINGERPRINT, secret
from deployments.engines.sample import CalibrationSample
from deployments.engines.segmenter import ImageSegmenter
from models.make_calibration_sample import load_segmenter
from policies.calibration import _median_distance
from policies.ladder import NoiseLadder

SMOOTHER = "CRF-like smoother"
VOTE, CORRECTOR = "20 usual near-duplicates, vote", "corrector, other drives: answers within 31 pixels"

MASKS = View(SMOOTHER, CORRECTOR, (VOTE,), (0.15, 0.05), VOTE)


@dataclass(frozen=True)
class MaskField:
    """A noise field: length scale in median distances, depth, metric [H, m], side of its squares: 4 logits or 8."""

    length_scale: float
    depth: int
    metric: Tensor | None
    block: int = 4


def fields(metric: Tensor) -> dict[str, MaskField]:
    """Fields by name, the installed one first; the metric's columns rise in importance."""
    installed, width = MaskField(0.9, 128, metric), metric.shape[1]
    deep = MaskField(0.6, 512, metric)
    return {
        f"metric of {width}, ell 0.9, D 128, 4 x 4": installed,
        f"metric of {width}, ell 0.6, D 128, 4 x 4": replace(installed, length_scale=0.6),
        f"metric of {width}, ell 0.6, D 512, 4 x 4": deep,
        f"metric of {width}, ell 0.4, D 512, 4 x 4": replace(deep, length_scale=0.4),
        f"metric of {width}, ell 0.6, D 512, 8 x 8": replace(deep, block=8),
        f"metric of {width // 4}, ell 0.6, D 512, 4 x 4": replace(deep, metric=metric[:, -(width // 4) :]),
        "plain, ell 0.8, D 128, 4 x 4": MaskField(0.8, 128, None),
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
            noises[name] = _noise(engine, sample, field, number, data.examples)
        for name, noise in noises.items():
            attack = MaskAttack([noise], data, [])
            reached = {
                VOTE: attack.judge(attack.few),
                "majority, 31 x 31 pixels": attack.judge(majority(one, 31) for one in attack.one),
                SMOOTHER: attack.judge(
                    crf(one, scene.picture) for one, scene in zip(attack.one, data.judged, strict=True)
                ),
                CORRECTOR: attack.corrected(mask_correctors.near, "other drives"),
                "corrector, other drives: answer and its neighbourhood": attack.corrected(
                    mask_correctors.answers, "other drives"
                ),
            }
            for row, accuracy in reached.items():
                records.add(name, row, attack.share(accuracy))
        records.save(folder / "mask-frontier.json")
    return records


def _noise(
    engine: ImageSegmenter, sample: CalibrationSample, field: MaskField, number: int, examples: list[Scene]
) -> Noise:
    assert sample.field_features is not None and isinstance(sample.logits, Tensor)
    seen = sample.field_features if field.metric is None else sample.field_features @ field.metric
    ell = field.length_scale * _median_distance(seen, sample.logits.argmax(dim=1))
    ladder = NoiseLadder(
        secret(number), FINGERPRINT, features=engine.features, classes=len(engine.classes), length_scale=ell,
        depth=field.depth, metric=field.metric,
    )  # fmt: skip

    def coarse(scene: Scene) -> Scene:
        fold = field.block // engine.block
        return scene if fold == 1 else replace(scene, means=F.avg_pool2d(scene.means.float(), fold, ceil_mode=True))

    @cache
    def position(level: float) -> int:
        return solved_position(level, examples, lambda scene, at: add_field(ladder, coarse(scene), slice(1), at))

    return lambda scene, queries, level: add_field(ladder, coarse(scene), queries, position(level))
