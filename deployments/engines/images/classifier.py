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
        """One picture's labels from its modulated logits, as far as its terms disclose them. Safe from any thread."""
        agreed = bool((highest(item.clean[None]) == highest(item.utility[None]))[0])
        self._count(item, modulation.utility, 1, int(agreed))
        shown = modulation.disclosure
        count = min(len(self.classes), shown.labels or len(self.classes), top_k or len(self.classes))
        scores, indices = item.logits.softmax(dim=0).topk(count)
        # Among equals the answer is the first, which topk does not promise, and which the audit counts.
        first = highest(item.logits[None])
        indices = torch.cat([first, torch.where(indices == first, indices[0], indices)[1:]])
        return [
            Label(self.classes[index], shown.score(score))
            for index, score in zip(indices.tolist(), scores.tolist(), strict=True)
        ]

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
