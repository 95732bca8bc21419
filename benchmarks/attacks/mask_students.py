"""Students of masks: learners on a frozen encoder's features of cells, fitted on a level's answers, not on labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attacks import mask_correctors
from benchmarks.attacks.mask_attack import MaskAttack
from benchmarks.attacks.mask_encoders import FOREIGN, OWN, QUERIES, Encoded
from benchmarks.attacks.mask_features import OTHER, SAME, Scene, undone
from benchmarks.attacks.mask_levels import answered
from policies.attacks.corrector import BELIEF
from policies.attacks.learners import Learner, Scorer, linear, neighbours, network, stiff

STIFF = 0.3
"""The penalty of 0.001 to 1 with which a student on the model's own encoder was strongest, under one secret."""
HEADS: dict[str, dict[str, Learner]] = {
    OWN: {"linear": linear, "stiff linear": stiff(STIFF)},
    FOREIGN: {"linear": linear, "network": network, "nearest": neighbours},
}
STRONGEST = {OWN: "stiff linear", FOREIGN: "linear"}
"""The heads whose students stand in correctors, and are tried in every other way."""
FEW = 40
"""Pictures of a student that has few."""
Rows = dict[str, Callable[[], float]]


class MaskStudents:
    """Students of one source at one level. Attacks return the pixel accuracy reached on the judged pictures.

    Args:
        pictures: the attacker's own, without labels.
        encoders: by name, what the pictures are seen through.
    """

    def __init__(self, attack: MaskAttack, pictures: Sequence[Scene], encoders: Mapping[str, Encoded]) -> None:
        self._attack, self._pictures, self._encoders = attack, pictures, encoders
        self._classes = attack.data.judged[0].logits.shape[1]

    def rows(self) -> Rows:
        """Attacks by name."""
        rows: Rows = {}
        for name in self._encoders:
            for head, learner in HEADS[name].items():
                student = f"student, {name}, {head}"
                rows[f"{student}: {len(self._pictures)} pictures"] = partial(self.fitted, name, learner)
                rows[f"{student}: the same, 8 labelled, {OTHER}"] = partial(self.fitted, name, learner, OTHER)
            rows |= self._more(name, STRONGEST[name])
        return rows

    def _more(self, name: str, head: str) -> Rows:
        """What else a student is tried with, in every way but one as one of all pictures and no labels is."""
        student, fitted = f"student, {name}, {head}", partial(self.fitted, name, HEADS[name][head])
        rows: Rows = {
            f"{student}: the same, 8 labelled, {SAME}": partial(fitted, SAME),
            f"{student}: the same, 8 answered at 1.0, {OTHER}": partial(fitted, OTHER, True),
            f"{student}: the same, 8 answered at 1.0, {SAME}": partial(fitted, SAME, True),
            f"{student}: {FEW} pictures": partial(fitted, pictures=FEW),
            f"{student}: 3 queries each, vote": partial(fitted, queries=QUERIES),
            f"{student}, and the answer itself": partial(self.with_answer, name),
        }
        for drive in (OTHER, SAME):
            row = f"{student}, in a corrector, {drive}: answers, place and colour"
            rows[row] = partial(self.in_corrector, name, drive)
        return rows

    def alone(self) -> Rows:
        """What encoders and the attacker's labels are worth without any answer: the best of the heads."""
        return {
            f"8 labelled alone, {name}, {drive}": partial(self.labels_alone, name, drive)
            for name in self._encoders
            for drive in (OTHER, SAME)
        }

    def fitted(
        self,
        name: str,
        learner: Learner,
        drive: str | None = None,
        gold: bool = False,
        pictures: int | None = None,
        queries: int = 1,
    ) -> float:
        """A student of the answers to all pictures or the first few, and of 8 labelled ones of a drive.

        Args:
            gold: those are labelled by a key of level 1.0, not by hand.
            queries: near-duplicates that are asked of each picture, for a vote.
        """
        x, y = self._encoders[name].unlabelled.known(self._answers[queries][name], pictures)
        if drive is not None:
            more_x, more_y = self._labelled(name, drive, gold)
            x, y = torch.cat([x, more_x]), torch.cat([y, more_y])
        return self._attack.judge(self._maps(learner(x, y, self._classes), self._encoders[name].maps["judged"]))

    def labels_alone(self, name: str, drive: str) -> float:
        """The best of the heads, chosen after the fact."""
        x, y = self._labelled(name, drive, False)
        judged = self._encoders[name].maps["judged"]
        return max(
            self._attack.judge(self._maps(learner(x, y, self._classes), judged)) for learner in HEADS[name].values()
        )

    def with_answer(self, name: str) -> float:
        """What a student believes, times how often its classes are answered as the pixel was: needs no labels."""
        encoded = self._encoders[name].unlabelled
        x, y = encoded.known(self._answers[1][name])
        student = self._plain(name)
        counts = torch.zeros(self._classes, self._classes).index_add_(1, y, student(x).softmax(dim=1).T)
        likely = ((counts + 1.0) / (counts + 1.0).sum(dim=1, keepdim=True)).log()
        maps = self._maps(student, self._encoders[name].maps["judged"])
        answered = [likely[:, one.argmax(dim=0)] for one in self._attack.one]
        return self._attack.judge([m + a for m, a in zip(maps, answered, strict=True)])

    def in_corrector(self, name: str, drive: str) -> float:
        """A corrector that sees what a student says besides the answers, the place and the colour."""
        attack, maps = self._attack, self._encoders[name].maps
        scenes = attack.data.foreign if drive == OTHER else attack.data.examples
        known = attack.foreign if drive == OTHER else attack.examples
        student = self._plain(name)
        said = mask_correctors.labelled(list(zip(self._maps(student, maps[drive]), scenes, strict=True)))
        judged = mask_correctors.judging(
            list(zip(self._maps(student, maps["judged"]), attack.data.judged, strict=True))
        )

        def sees(pixels: mask_correctors.Pixels, student: Tensor) -> Tensor:
            logs = student.log_softmax(dim=1)
            return torch.cat([mask_correctors.everything(pixels), logs.exp(), logs.clamp(min=-8.0)], dim=1)

        fitted = linear(sees(known, said.own), known.truth, self._classes, BELIEF * known.own)
        scores = fitted(sees(attack.judging, judged.own), BELIEF * attack.judging.own)
        return float((scores.argmax(dim=1) == judged.truth).float().mean())

    @cached_property
    def _answers(self) -> dict[int, dict[str, Tensor]]:
        """By near-duplicates asked, and encoder: what each cell of the pictures is answered, [P, C] int64."""
        ways = [one.unlabelled.at.shape[1] for one in self._encoders.values()]
        at = torch.cat([one.unlabelled.at for one in self._encoders.values()], dim=1)
        shares = torch.stack([self._asked(scene, where) for scene, where in zip(self._pictures, at, strict=True)])
        votes = {1: shares[:, 0], QUERIES: shares.mean(dim=1) + 1e-3 * shares[:, 0]}
        return {
            queries: dict(zip(self._encoders, share.argmax(dim=2).split(ways, dim=1), strict=True))
            for queries, share in votes.items()
        }

    def _asked(self, scene: Scene, at: Tensor) -> Tensor:
        """Answers to near-duplicates of a picture at some pixels: [3, C, K], one-hot."""
        logits = self._attack.noises[0](scene, slice(QUERIES), self._attack.level)
        whole = F.interpolate(logits, scene.truth.shape, mode="bilinear", align_corners=False)
        straight = torch.stack([undone(one, [n] * len(one)).flatten(1)[:, at].T for n, one in enumerate(whole)])
        return F.one_hot(straight.argmax(dim=2), self._classes).float()

    def _plain(self, name: str) -> Scorer:
        """The strongest student, of one answer to each picture."""
        if name not in self._fitted:
            learner, known = HEADS[name][STRONGEST[name]], self._encoders[name].unlabelled
            self._fitted[name] = learner(*known.known(self._answers[1][name]), self._classes)
        return self._fitted[name]

    @cached_property
    def _fitted(self) -> dict[str, Scorer]:
        return {}

    def _labelled(self, name: str, drive: str, gold: bool) -> tuple[Tensor, Tensor]:
        scenes = self._attack.data.foreign if drive == OTHER else self._attack.data.examples
        masks = torch.stack([answered(scene).truth if gold else scene.truth for scene in scenes])
        cells = self._encoders[name].labelled[drive]
        return cells.known(cells.read(masks))

    def _maps(self, student: Scorer, maps: Tensor) -> list[Tensor]:
        """Log-scores [K, h, w] of pictures at their own resolution."""
        size = self._attack.data.judged[0].truth.shape
        scores = [student(one.flatten(1).T).T.reshape(-1, *one.shape[1:]) for one in maps]
        return [F.interpolate(one[None], size, mode="bilinear", align_corners=False)[0] for one in scores]
