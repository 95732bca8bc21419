"""Image classification: torchvision architectures and transformers image classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from deployments.config import Task
from deployments.engines.images.duplicates import Duplicate
from deployments.engines.images.engine import VisionEngine
from deployments.engines.images.items import ItemLogits
from deployments.engines.live import Kept
from policies.answers import highest
from policies.calibration.sample import CalibrationSample
from policies.calibration.schemes import LABELS
from policies.terms import Modulation


class Label(NamedTuple):
    """One class of an answer and its probability, in the digits that the terms disclose; None: in none."""

    label: str
    score: float | None

    def to_json(self) -> dict[str, str | float | None]:
        """As Hugging Face's Inference API answers it."""
        return {"label": self.label, "score": self.score}


class ImageClassifier(VisionEngine):
    """An image classifier; an audit row is an image."""

    task = Task.CLASSIFICATION
    calibration_images = 5000
    live_judged = 4096
    scheme = LABELS
    least_live = 500

    def predict(
        self,
        images: Sequence[Image.Image],
        modulations: Sequence[Modulation],
        top_k: Sequence[int | None] | None = None,
    ) -> list[list[Label]]:
        """Classify pictures of several tenants in one batch.

        Args:
            top_k: per picture, most labels wanted; the terms may allow fewer.

        Returns:
            Per picture, labels by falling score.
        """
        items = self.forward([self.preprocess(image) for image in images], modulations)
        wanted = top_k or [None] * len(items)
        return [self.answer(*row) for row in zip(items, modulations, wanted, strict=True)]

    def answer(self, item: ItemLogits, modulation: Modulation, top_k: int | None = None) -> list[Label]:
        """As `readout`, of one picture."""
        return self.readout([item], [modulation], [top_k])[0]

    @torch.inference_mode()
    def readout(
        self, items: Sequence[ItemLogits], modulations: Sequence[Modulation], top_k: Sequence[int | None]
    ) -> list[list[Label]]:
        """The labels of each picture of a batch, from its modulated logits, as far as its terms disclose them.

        All that is done with tensors is done for all of them together. Safe from any thread.
        """
        logits, clean, utility = (
            torch.stack(rows).cpu() for rows in zip(*((i.logits, i.clean, i.utility) for i in items), strict=True)
        )
        self._judge(clean, utility, [modulation.utility for modulation in modulations])
        first, scores = highest(logits).tolist(), logits.softmax(dim=1)
        counts: dict[int, list[int]] = {}
        for at, (modulation, asked) in enumerate(zip(modulations, top_k, strict=True)):
            every = len(self.classes)
            counts.setdefault(min(every, modulation.disclosure.labels or every, asked or every), []).append(at)
        answers: dict[int, list[Label]] = {}
        for count, rows in counts.items():
            values, indices = (part.tolist() for part in scores[rows].topk(count, dim=1))
            for at, own, found in zip(rows, values, indices, strict=True):
                # Among equals the answer is the first, which topk does not promise, and which the audit counts.
                named = [first[at], *(found[0] if index == first[at] else index for index in found[1:])]
                shown = modulations[at].disclosure
                answers[at] = [Label(self.classes[i], shown.score(v)) for i, v in zip(named, own, strict=True)]
        return [answers[at] for at in range(len(items))]

    def _judge(self, clean: Tensor, utility: Tensor, levels: Sequence[float]) -> None:
        """Count each row's answer in the audit."""
        agreed, halves = (highest(clean) == highest(utility)).tolist(), clean.half()
        for level, same, row in zip(levels, agreed, halves, strict=True):
            self._count(row, level, 1, int(same))

    def take(self, features: Tensor, number: int) -> Tensor:
        """All of it."""
        return features

    def nearby(self, features: Sequence[Tensor], ways: Sequence[Duplicate]) -> Tensor:
        """One input, in all its duplicates."""
        return torch.cat(list(features))[None]

    def sample_of(self, kept: Kept) -> tuple[CalibrationSample, Tensor]:
        """Live features as a sample, and the group of each."""
        return self._sample(kept.rows.to(self.device), 1, None), kept.groups

    def _sample(self, features: Tensor, scale: int, metric: Tensor | None) -> CalibrationSample:
        features = features.float()
        logits = torch.cat([self.clean_logits(part) for part in features.split(4096)])
        return CalibrationSample(features, logits, metric=metric)
