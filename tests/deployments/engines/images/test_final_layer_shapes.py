"""Classifiers whose final layer is given [B, 1, H], or a map of one pixel: sold by level like others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deployments.config import ModelSpec, Task
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.loading.loaded import LoadedModel
from tests.deployments.vision_support import GOLD, SECRET, at, scenes

CLASSES = ("a", "b", "c")


class OnePlace(nn.Module):
    """As the Perceiver's decoder: a query of one place."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.final = nn.Linear(48, 16), nn.Linear(16, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.final(self.body(pixels.flatten(1)).tanh()[:, None])
        return logits[:, 0]


class OnePixel(nn.Module):
    """As mobile networks whose classifier is a 1x1 convolution of the pooled map."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.final = nn.Linear(48, 16), nn.Conv2d(16, 3, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.final(self.body(pixels.flatten(1)).tanh()[..., None, None])
        return logits.flatten(1)


@pytest.mark.parametrize("kind", [OnePlace, OnePixel])
def test_levels_are_solved_delivered_judged_and_refitted(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()

    def preprocess(image: object) -> Tensor:
        small = image.resize((4, 4))  # type: ignore[attr-defined]
        return torch.tensor(list(small.tobytes())).float().view(4, 4, 3).permute(2, 0, 1) / 64 - 2

    loaded = LoadedModel(model, model, preprocess, preprocess, CLASSES, "m")
    engine = ImageClassifier(ModelSpec(id="m", task=Task.CLASSIFICATION, source="m", refit="ask"), loaded, "cpu")  # type: ignore[arg-type]
    engine.least_live = 50  # type: ignore[misc]
    pictures = scenes(400, 16, 16)
    pixels = torch.stack([engine.preprocess(picture) for picture in pictures])
    features = engine.final_input(pixels)
    assert features.shape == (400, 16)
    assert torch.equal(engine.clean_logits(features), model(pixels))
    engine.install(engine.fit(engine._sample(features, 1, None), SECRET), SECRET)
    gold = [answer[0].label for answer in engine.predict(pictures, [GOLD] * 400)]
    low = [answer[0].label for answer in engine.predict(pictures, [at(0.7)] * 400)]
    assert sum(a == b for a, b in zip(gold, low, strict=True)) / 400 == pytest.approx(0.7, abs=0.05)
    engine.judge_live()
    (report,) = engine.reports()
    assert report.expected.level == pytest.approx(0.7, abs=0.1)
    assert engine.sample_of(engine.live_rows())[0].features.shape[1:] == (16,)
