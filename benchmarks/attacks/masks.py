"""Attacks on masks: street scenes that neither trained nor calibrated the segmenter, judged by pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attacks import mask_correctors
from benchmarks.attacks.arithmetic import best_combination, sampled, temperature_for, votes, won_back
from benchmarks.attacks.mask_features import BOTH_EXAMPLES, BOTH_QUERIES, EDGE, VOID, Scene, Scenes, scenes, undone
from benchmarks.attacks.records import Records
from benchmarks.attacks.smoothing import by_segment, crf, majority, mean_shift_segments, one_hot
from benchmarks.attacks.sources import secret
from deployments.engines.sample import CalibrationSample
from deployments.engines.segmenter import ImageSegmenter
from models.make_calibration_sample import load_segmenter
from policies.calibration import Calibration
from policies.ladder import POSITIONS, NoiseLadder, variance
from policies.layer import block_of

LEVEL, LOWER_LEVELS = 0.7, (0.6, 0.5)
ACCOUNTS, TEMPERATURE_DRAWS = 8, 20
REPEATS = f"{TEMPERATURE_DRAWS} repeats, vote"
_CHUNK = 10
Noise = Callable[[Scene, slice, float], Tensor]
"""A scene's queries at a level to their modulated logits [Q, K, h, w]."""


def measure(root: Path, folder: Path, secrets: int) -> Records:
    """Every attack against the ladder under every secret, against the other sources under one."""
    engine = load_segmenter()
    data, records = scenes(engine, root, folder / "masks"), Records()
    sample = engine.calibration_sample(Path(str(engine.spec.calibration)))
    segments = [mean_shift_segments(scene.picture) for scene in data.judged]
    for number in range(secrets):
        if number == 0:
            fresh = MaskAttack([fresh_noise(number, data.examples)], data, segments)
            records.run("fresh", {name: _shared(fresh, run) for name, run in fresh.one_account().items()})
            keys = MaskAttack(ladders(engine, sample, data, number, ACCOUNTS), data, segments)
            records.run("temperature", {REPEATS: partial(temperature, fresh, number)})
            records.run("key per tenant", {f"{ACCOUNTS} accounts, vote": _shared(keys, keys.accounts)})
        ladder = MaskAttack(ladders(engine, sample, data, number, 1), data, segments)
        records.run("ladder", {name: _shared(ladder, run) for name, run in ladder.one_account().items()})
        records.save(folder / "masks.json")
    return records


def fresh_noise(number: int, examples: list[Scene]) -> Noise:
    """The paper's noise, independent for each logit; its scale solved at the pictures' resolution."""
    generator, scales = torch.Generator().manual_seed(number), dict[float, float]()

    def noise(scene: Scene, queries: slice, level: float) -> Tensor:
        if level not in scales:
            at = solved_position(level, examples, lambda one, at: _noisy(one, slice(1), variance(at) ** 0.5, generator))
            scales[level] = variance(at) ** 0.5
        return _noisy(scene, queries, scales[level], generator)

    return noise


def ladders(engine: ImageSegmenter, sample: CalibrationSample, data: Scenes, number: int, accounts: int) -> list[Noise]:
    """The field as installed, with a key for each account; levels of the first as its calibration solves them."""
    calibration = engine.fit(sample, secret(number))
    made = [_ladder(engine, calibration, number, calibration.position)]
    for account in range(1, accounts):
        key = 1000 * (number + 1) + account
        made.append(_ladder(engine, calibration, key, _solver(engine, calibration, key, data.examples)))
    return made


def temperature(attack: MaskAttack, number: int) -> float:
    """Share that a vote wins back from masks sampled pixel by pixel, at the temperature that delivers the level."""
    generator = torch.Generator().manual_seed(number)
    heat = temperature_for(torch.cat([_pixels(scene)[::16] for scene in attack.data.examples]), LEVEL)
    single, voted = [], []
    for scene in attack.data.judged:
        drawn = sampled(_pixels(scene), heat, TEMPERATURE_DRAWS + 1, generator)
        single.append(drawn[:, 0].reshape(scene.truth.shape))
        voted.append(votes(drawn[:, 1:], scene.logits.shape[1]).argmax(dim=1).reshape(scene.truth.shape))
    return won_back(attack.judge(voted), attack.judge(single), attack.clean())


@dataclass
class MaskAttack:
    """Sources of noise, one for each account, under attack at one level. Attacks return the pixel accuracy reached.

    Args:
        segments: mean-shift segments [h, w] of each judged picture.
    """

    noises: list[Noise]
    data: Scenes
    segments: list[Tensor]

    def one_account(self) -> dict[str, Callable[[], float]]:
        """The rows of the table that one account can fill."""
        filters = {f"majority, {size} x {size} pixels": self._filter(size) for size in (3, 7, 15, 31)}
        return {
            REPEATS: self.repeats,
            "100 usual near-duplicates, vote": lambda: self.judge(self.shares),
            **filters,
            "mean-shift segments, majority": lambda: self.judge(map(by_segment, self.one, self.segments)),
            "CRF-like smoother": lambda: self.judge(crf(m, s.picture) for m, s in self._judged(self.one)),
            "levels 0.7, 0.6 and 0.5, raw logits, best combination": self.combined_levels,
            **self.correctors(),
            "both: 20 queries, vote, then majority 15 x 15": lambda: self.judge(majority(m, 15) for m in self.few),
            "both: 20 queries, vote, then CRF-like": lambda: self.judge(
                crf(m, s.picture) for m, s in self._judged(self.few)
            ),
            "both: 20 queries, corrector, same drive (4 pictures)": self.both,
        }

    @cached_property
    def one(self) -> list[Tensor]:
        """One answer to each picture: [K, h, w]."""
        return [self.asked(scene, 1) for scene in self.data.judged]

    @cached_property
    def few(self) -> list[Tensor]:
        """Shares of 20 votes."""
        return [self.asked(scene, BOTH_QUERIES) for scene in self.data.judged]

    @cached_property
    def shares(self) -> list[Tensor]:
        """Shares of 100 votes."""
        return [self.asked(scene, len(scene.logits)) for scene in self.data.judged]

    def asked(self, scene: Scene, queries: int, account: int = 0) -> Tensor:
        """Shares of votes [K, h, w] of a scene's first near-duplicates, each put back into the picture's frame."""
        total = torch.zeros(scene.logits.shape[1], *scene.truth.shape)
        for start in range(0, queries, _CHUNK):
            numbers = range(start, min(start + _CHUNK, queries))
            logits = self.noises[account](scene, slice(numbers.start, numbers.stop), LEVEL)
            for labels in undone(_read(logits, scene), numbers):
                total += one_hot(labels, len(total))
        return total / queries

    def clean(self) -> float:
        """What the unmodulated model is worth."""
        return self.judge(map(_clean, self.data.judged))

    def single(self) -> float:
        """What the level is worth: one answer each."""
        return self.judge(self.one)

    def repeats(self) -> float:
        """The same picture again and again."""
        return self.judge(
            torch.stack([self.asked(scene, 1) for _ in range(TEMPERATURE_DRAWS)]).sum(dim=0)
            for scene in self.data.judged
        )

    def accounts(self) -> float:
        """One query each from every account."""
        everyone = range(len(self.noises))
        return self.judge(sum((self.asked(s, 1, a) for a in everyone), torch.zeros(())) for s in self.data.judged)

    def combined_levels(self) -> float:
        """Raw logits at three levels, in the linear combination that is nearest to the clean ones."""
        levels = (LEVEL, *LOWER_LEVELS)
        rows = [torch.cat([_rows(self.noises[0](s, slice(1), v)) for s in self.data.examples]) for v in levels]
        weights = best_combination(rows, torch.cat([_rows(s.logits[:1].float()) for s in self.data.examples]))
        out = []
        for scene in self.data.judged:
            mixed = sum(w * self.noises[0](scene, slice(1), v) for w, v in zip(weights, levels, strict=True))
            out.append(one_hot(_read(torch.as_tensor(mixed), scene)[0], scene.logits.shape[1]))
        return self.judge(out)

    def correctors(self) -> dict[str, Callable[[], float]]:
        """6,000 labelled pixels of 8 pictures of other drives, or of the judged one; and what those give alone."""
        other, same = self.data.foreign, self.data.examples
        run = self.corrected
        rows: dict[str, Callable[[], float]] = {}
        for drive, known in (("other drives", other), ("same drive", same)):
            rows |= {
                f"corrector, {drive}: answers within 31 pixels": partial(run, mask_correctors.near, known),
                f"corrector, {drive}: answer and its neighbourhood": partial(run, mask_correctors.around, known),
                f"corrector, {drive}: the same, place and colour": partial(run, mask_correctors.everything, known),
                f"no answers, {drive}: place and colour": partial(run, mask_correctors.picture, known),
                f"clean answers, {drive}: the same, place and colour": partial(
                    run, mask_correctors.everything, known, clean=True
                ),
            }
        return rows

    def both(self) -> float:
        """The same from shares of 20 votes."""
        known = self.data.examples[:BOTH_EXAMPLES]
        shares = [(self.asked(s, BOTH_QUERIES), s) for s in known]
        return mask_correctors.corrected(mask_correctors.around, shares, list(self._judged(self.few)), True)

    def share(self, reached: float) -> float:
        """Accuracy as a share of the level's gap."""
        return won_back(reached, self.single(), self.clean())

    def corrected(self, sees: mask_correctors.Seen, known: list[Scene], clean: bool = False) -> float:
        """A corrector fitted on labelled scenes, of one answer each, or of clean ones."""
        answered = _clean if clean else partial(self.asked, queries=1)
        shares = [(answered(scene), scene) for scene in known]
        judged = [(_clean(scene), scene) for scene in self.data.judged] if clean else list(self._judged(self.one))
        believes = sees in (mask_correctors.around, mask_correctors.everything)
        return mask_correctors.corrected(sees, shares, judged, believes)

    def _filter(self, size: int) -> Callable[[], float]:
        return lambda: self.judge(majority(m, size) for m in self.one)

    def _judged(self, shares: list[Tensor]) -> Iterable[tuple[Tensor, Scene]]:
        return zip(shares, self.data.judged, strict=True)

    def judge(self, answers: Iterable[Tensor]) -> float:
        """Share of right pixels, of labels [h, w] or scores [K, h, w] of each judged picture; neither void nor edge."""
        right = known = 0
        inner = (slice(EDGE, -EDGE), slice(EDGE, -EDGE))
        for answer, scene in zip(answers, self.data.judged, strict=True):
            labels = answer.argmax(dim=0) if answer.ndim == 3 else answer
            truth = scene.truth[inner]
            right += int((labels[inner] == truth).sum())
            known += int((truth != VOID).sum())
        return right / known


def _shared(attack: MaskAttack, run: Callable[[], float]) -> Callable[[], float]:
    return lambda: attack.share(run())


def _own(engine: ImageSegmenter, calibration: Calibration, number: int) -> NoiseLadder:
    return calibration.ladder(secret(number), features=engine.features, classes=len(engine.classes))


def _ladder(engine: ImageSegmenter, calibration: Calibration, number: int, position: Callable[[float], int]) -> Noise:
    own = _own(engine, calibration, number)
    return lambda scene, queries, level: add_field(own, scene, queries, position(level))


def _solver(
    engine: ImageSegmenter, calibration: Calibration, number: int, examples: list[Scene]
) -> Callable[[float], int]:
    own = _own(engine, calibration, number)
    return cache(lambda level: solved_position(level, examples, lambda one, at: add_field(own, one, slice(1), at)))


def _noisy(scene: Scene, queries: slice, scale: float, generator: torch.Generator) -> Tensor:
    logits = scene.logits[queries].float()
    return logits + scale * torch.randn(logits.shape, generator=generator)


def add_field(ladder: NoiseLadder, scene: Scene, queries: slice, position: int) -> Tensor:
    """Modulated logits [Q, K, h, w] of a scene's queries, by the field on its means."""
    logits, means = scene.logits[queries].float(), scene.means[queries].float()
    height, width = logits.shape[-2:]
    block = -(-height // means.shape[-2])
    noise = (ladder.phi(_rows(means)) @ ladder.matrix(position)).reshape(len(means), -1, logits.shape[1])
    spread = noise[:, block_of(height, width, block, noise.device)]
    return logits + spread.reshape(len(means), height, width, -1).movedim(-1, 1)


def solved_position(level: float, examples: list[Scene], make: Callable[[Scene, int], Tensor]) -> int:
    """The position of the ladder's grid of variances at which labels of some scenes agree as often as the level."""
    clean = [_read(scene.logits[:1].float(), scene) for scene in examples]
    low, high = 0, POSITIONS
    while high - low > POSITIONS // 2**12:
        middle = (low + high) // 2
        same = [(_read(make(s, middle), s) == c).float().mean() for s, c in zip(examples, clean, strict=True)]
        low, high = (middle, high) if float(torch.stack(same).mean()) > level else (low, middle)
    return low


def _read(logits: Tensor, scene: Scene) -> Tensor:
    """Labels [Q, h, w] at the picture's resolution."""
    whole = F.interpolate(logits, scene.truth.shape, mode="bilinear", align_corners=False)
    return whole.argmax(dim=1)


def _clean(scene: Scene) -> Tensor:
    """The unmodulated answer to a scene, one-hot [K, h, w]."""
    return one_hot(_read(scene.logits[:1].float(), scene)[0], scene.logits.shape[1])


def _pixels(scene: Scene) -> Tensor:
    """Clean logits [h * w, K] at the picture's resolution."""
    return _rows(F.interpolate(scene.logits[:1].float(), scene.truth.shape, mode="bilinear", align_corners=False))


def _rows(maps: Tensor) -> Tensor:
    return maps.movedim(1, -1).flatten(0, -2)
