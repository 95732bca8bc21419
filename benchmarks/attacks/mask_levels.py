"""Attacks on masks by one account that may ask for lower levels, or by two of which one has the model itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor

from benchmarks.attacks import mask_correctors
from benchmarks.attacks.mask_attack import CURVED, MaskAttack
from benchmarks.attacks.mask_correctors import Pixels
from benchmarks.attacks.mask_features import OTHER, SAME, Scene
from benchmarks.attacks.mask_sources import labels_of
from policies.attacks.corrector import BELIEF
from policies.attacks.learners import Learner, linear

LOWER, STEP = 9, 0.05
"""Lower levels that a tier grants, and how far they lie apart."""
GOLD = (4, 8)
"""Pictures that a key of level 1.0 answers."""
CORRECTORS = {
    "own answers": mask_correctors.own,
    "answers and their neighbourhoods": mask_correctors.answers,
    "the same, place and colour": mask_correctors.everything,
}
Rows = dict[str, Callable[[], float]]


class MaskLevels:
    """Several levels of one source. Attacks return the pixel accuracy reached on the judged pictures."""

    def __init__(self, attack: MaskAttack) -> None:
        self._attack = attack
        below = [round(attack.level - STEP * number, 2) for number in range(1, LOWER + 1)]
        self._all = [attack, *(MaskAttack(attack.noises, attack.data, [], level) for level in below)]

    def rows(self) -> Rows:
        """Attacks by name."""
        rows: Rows = {f"granted {LOWER} lower levels: vote": self.vote}
        for drive in (OTHER, SAME):
            for name, learner in {"linear": linear, **CURVED}.items():
                row = f"granted {LOWER} lower levels: corrector, {name}, {drive}: own answers"
                rows[row] = partial(self.corrected, drive, learner, ())
            row = f"granted {LOWER} lower levels: corrector, linear, {drive}: answers within 31 pixels too"
            rows[row] = partial(self.corrected, drive, linear, (1,))
        return rows | self.gold_rows()

    def gold_rows(self) -> Rows:
        """A key of level 1.0 answers some pictures, one of the attacked level those and all others."""
        return {
            f"{count} pictures answered at 1.0: corrector, {drive}: {name}": partial(self.gold, sees, drive, count)
            for drive in (OTHER, SAME)
            for count in GOLD
            for name, sees in CORRECTORS.items()
        }

    def vote(self) -> float:
        """A mask of each level; where others are as frequent, that of the highest decides."""
        masks = zip(*(attack.one for attack in self._all), strict=True)
        return self._attack.judge(0.5 * highest + highest + sum(lower) for highest, *lower in masks)

    def corrected(self, drive: str, learner: Learner, windows: tuple[int, ...]) -> float:
        """A corrector of the answers at all levels, fitted on 6,000 labelled pixels of 8 pictures.

        Args:
            windows: which of `mask_correctors.WINDOWS` it sees the answers in.
        """
        known = self._foreign if drive == OTHER else self._examples
        fitted = learner(_levels(known, windows), known[0].truth, known[0].own.shape[1], BELIEF * known[0].own)
        scores = fitted(_levels(self._judging, windows), BELIEF * self._judging[0].own)
        return float((scores.argmax(dim=1) == self._judging[0].truth).float().mean())

    def gold(self, sees: mask_correctors.Seen, drive: str, count: int) -> float:
        """A corrector fitted on the first pictures of a drive, whose clean answers are its labels."""
        attack = self._attack
        scenes = (attack.data.foreign if drive == OTHER else attack.data.examples)[:count]
        known = mask_correctors.labelled([(attack.asked(scene, 1), answered(scene)) for scene in scenes])
        return mask_correctors.corrected(sees, known, attack.judging)

    @cached_property
    def _foreign(self) -> list[Pixels]:
        return [attack.foreign for attack in self._all]

    @cached_property
    def _examples(self) -> list[Pixels]:
        return [attack.examples for attack in self._all]

    @cached_property
    def _judging(self) -> list[Pixels]:
        return [attack.judging for attack in self._all]


def answered(scene: Scene) -> Scene:
    """A scene whose labels are the clean answer."""
    return replace(scene, truth=labels_of(scene.logits[:1].float(), scene)[0])


def _levels(pixels: list[Pixels], windows: tuple[int, ...]) -> Tensor:
    """What all levels answer at each pixel, and in the mean over windows around it: [N, levels * K * (1 + windows)]."""
    around = [at.around[:, window] for at in pixels for window in windows]
    return torch.cat([*(at.own for at in pixels), *around], dim=1)
