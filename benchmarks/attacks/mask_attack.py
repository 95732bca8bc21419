"""A source of noise on masks under attack at one level."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attacks import mask_correctors
from benchmarks.attacks.mask_correctors import Pixels
from benchmarks.attacks.mask_features import BOTH_EXAMPLES, BOTH_QUERIES, EDGE, OTHER, SAME, VOID, Scene, Scenes, undone
from benchmarks.attacks.mask_sources import Noise, labels_of, rows_of
from benchmarks.attacks.smoothing import by_segment, crf, majority, one_hot
from policies.attacks.answers import best_combination, sampled, temperature_for, votes, won_back
from policies.attacks.learners import Learner, linear, network, random_features

LEVEL = 0.7
ACCOUNTS, TEMPERATURE_DRAWS = 8, 20
REPEATS = f"{TEMPERATURE_DRAWS} repeats, vote"
CORRECTORS = {
    "its own answer": mask_correctors.own,
    "answers within 31 pixels": mask_correctors.near,
    "answer and its neighbourhood": mask_correctors.answers,
    "the same, place and colour": mask_correctors.everything,
    "place and colour, no answer": mask_correctors.picture,
}
CURVED: dict[str, Learner] = {"random features": random_features, "network": network}
_CHUNK = 10


@dataclass
class MaskAttack:
    """Sources of noise, one for each account, under attack at one level. Attacks return the pixel accuracy reached.

    Args:
        segments: mean-shift segments [h, w] of each judged picture.
    """

    noises: list[Noise]
    data: Scenes
    segments: list[Tensor]
    level: float = LEVEL

    def one_account(self) -> dict[str, Callable[[], float]]:
        """The rows of the table that one account can fill."""
        filters = {f"majority, {size} x {size} pixels": self._filter(size) for size in (3, 7, 15, 31)}
        return {
            REPEATS: self.repeats,
            "100 usual near-duplicates, vote": lambda: self.judge(self.shares),
            **filters,
            "mean-shift segments, majority": lambda: self.judge(map(by_segment, self.one, self.segments)),
            "CRF-like smoother": lambda: self.judge(crf(m, s.picture) for m, s in self._judged(self.one)),
            "levels 0.1 and 0.2 lower, raw logits, best combination": self.combined_levels,
            "levels 0.1 and 0.2 lower, a mask each, vote": self.levels_vote,
            **self.correctors(),
            "both: 20 queries, vote, then majority 15 x 15": lambda: self.judge(majority(m, 15) for m in self.few),
            "both: 20 queries, vote, then CRF-like": lambda: self.judge(
                crf(m, s.picture) for m, s in self._judged(self.few)
            ),
            "both: 20 queries, corrector, same drive (4 pictures)": self.both,
        }

    @property
    def levels(self) -> list[float]:
        """Those of a coalition, the attacked one first."""
        return [round(self.level - lower, 2) for lower in (0.0, 0.1, 0.2)]

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
            logits = self.noises[account](scene, slice(numbers.start, numbers.stop), self.level)
            for labels in undone(labels_of(logits, scene), numbers):
                total += one_hot(labels, len(total))
        return total / queries

    def answer(self, scene: Scene) -> Tensor:
        """One answer to a scene, one-hot [K, h, w]."""
        logits = self.noises[0](scene, slice(1), self.level)
        return one_hot(labels_of(logits, scene)[0], logits.shape[1])

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
        rows = [torch.cat([rows_of(self.noises[0](s, slice(1), v)) for s in self.data.examples]) for v in self.levels]
        weights = best_combination(rows, torch.cat([rows_of(s.logits[:1].float()) for s in self.data.examples]))
        out = []
        for scene in self.data.judged:
            mixed = sum(w * self.noises[0](scene, slice(1), v) for w, v in zip(weights, self.levels, strict=True))
            out.append(one_hot(labels_of(torch.as_tensor(mixed), scene)[0], scene.logits.shape[1]))
        return self.judge(out)

    def levels_vote(self) -> float:
        """One mask of each of three levels; that of the highest decides where all differ."""
        out = []
        for scene in self.data.judged:
            logits = torch.cat([self.noises[0](scene, slice(1), level) for level in self.levels])
            highest, *lower = (one_hot(labels, logits.shape[1]) for labels in labels_of(logits, scene))
            out.append(1.5 * highest + sum(lower))
        return self.judge(out)

    def correctors(self) -> dict[str, Callable[[], float]]:
        """6,000 labelled pixels of 8 pictures of other drives, or of the judged one."""
        return {
            f"corrector, {drive}: {name}": partial(self.corrected, sees, drive)
            for drive in (OTHER, SAME)
            for name, sees in CORRECTORS.items()
        }

    def curved_correctors(self) -> dict[str, Callable[[], float]]:
        """The same by learners that are not linear. From a pixel's own answer alone all learners are one table."""
        return {
            f"corrector, {learner}, {drive}: {name}": partial(self.corrected, sees, drive, CURVED[learner])
            for drive in (OTHER, SAME)
            for learner in CURVED
            for name, sees in CORRECTORS.items()
        }

    def corrected(self, sees: mask_correctors.Seen, drive: str, learner: Learner = linear) -> float:
        """A corrector fitted on labelled scenes of a drive, of one answer each."""
        known = self.foreign if drive == OTHER else self.examples
        return mask_correctors.corrected(sees, known, self.judging, learner)

    def both(self) -> float:
        """The same from shares of 20 votes."""
        known = [(self.asked(s, BOTH_QUERIES), s) for s in self.data.examples[:BOTH_EXAMPLES]]
        judged = mask_correctors.judging(list(self._judged(self.few)))
        return mask_correctors.corrected(mask_correctors.answers, mask_correctors.labelled(known), judged)

    @cached_property
    def foreign(self) -> Pixels:
        """Labelled pixels of other drives and their answers."""
        return mask_correctors.labelled([(self.asked(scene, 1), scene) for scene in self.data.foreign])

    @cached_property
    def examples(self) -> Pixels:
        """Labelled pixels of the same drive and their answers."""
        return mask_correctors.labelled([(self.asked(scene, 1), scene) for scene in self.data.examples])

    @cached_property
    def judging(self) -> Pixels:
        """The judged pixels and their answers."""
        return mask_correctors.judging(list(self._judged(self.one)))

    def share(self, reached: float) -> float:
        """Accuracy as a share of the level's gap."""
        return won_back(reached, self.single(), self.clean())

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


def temperature(attack: MaskAttack, number: int) -> float:
    """Share that a vote wins back from masks sampled pixel by pixel, at the temperature that delivers the level."""
    generator = torch.Generator().manual_seed(number)
    heat = temperature_for(torch.cat([_pixels(scene)[::16] for scene in attack.data.examples]), attack.level)
    single, voted = [], []
    for scene in attack.data.judged:
        drawn = sampled(_pixels(scene), heat, TEMPERATURE_DRAWS + 1, generator)
        single.append(drawn[:, 0].reshape(scene.truth.shape))
        voted.append(votes(drawn[:, 1:], scene.logits.shape[1]).argmax(dim=1).reshape(scene.truth.shape))
    return won_back(attack.judge(voted), attack.judge(single), attack.clean())


def _clean(scene: Scene) -> Tensor:
    """The unmodulated answer to a scene, one-hot [K, h, w]."""
    return one_hot(labels_of(scene.logits[:1].float(), scene)[0], scene.logits.shape[1])


def _pixels(scene: Scene) -> Tensor:
    """Clean logits [h * w, K] at the picture's resolution."""
    return rows_of(F.interpolate(scene.logits[:1].float(), scene.truth.shape, mode="bilinear", align_corners=False))
