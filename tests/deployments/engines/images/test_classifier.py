"""The image classifier: gold is the plain model, a row's answer is its own in any batch, and foreign models load."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from deployments.config import REPOSITORY, ModelSpec, Task
from deployments.engines.errors import LoadError
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.items import ItemLogits
from policies.errors import InvalidRequest, Unavailable
from policies.head.head import Head
from policies.terms import Disclosure, Modulation
from tests.deployments.vision_support import GOLD, SECRET, at, calibrated, saved_resnet, scenes, shipped

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
MODEL = "resnet18-cifar10"


@pytest.fixture(scope="module")
def engine() -> ImageClassifier:
    return calibrated(ImageClassifier.load(shipped(MODEL, Task.CLASSIFICATION)))


@pytest.fixture(scope="module")
def plain() -> torch.nn.Module:
    """The same weights in torchvision's own model, without any of our code."""
    model = torchvision.models.resnet18(num_classes=10)
    model.load_state_dict(load_file(REPOSITORY / "models" / MODEL / "model.safetensors"))
    return model.eval()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return scenes(48, 32, 32)


def test_the_shipped_model_says_what_it_is(engine: ImageClassifier) -> None:
    assert (engine.model_id, engine.task, list(engine.classes)) == (MODEL, Task.CLASSIFICATION, CLASSES)
    assert engine.features == 512
    assert 0.01 <= engine.floor <= 0.2


def test_gold_is_the_plain_model_bit_for_bit(
    engine: ImageClassifier, plain: torch.nn.Module, images: list[Image.Image]
) -> None:
    pixels = [engine.preprocess(image) for image in images]
    with torch.inference_mode():
        expected = plain(torch.stack(pixels))
    # A gold row keeps its logits also where its neighbours in the batch are modulated.
    mixed = engine.forward(pixels, [GOLD if i % 2 else at(0.7) for i in range(len(images))])
    for index, item in enumerate(mixed):
        assert torch.equal(item.clean, expected[index])
        assert torch.equal(item.logits, expected[index]) == bool(index % 2)
    for answer, row in zip(engine.predict(images, [GOLD] * len(images)), expected.softmax(1), strict=True):
        scores = dict(answer)
        assert len(scores) == 10
        assert [scores[name] for name in CLASSES] == pytest.approx(row.tolist(), abs=1e-6)


def test_a_row_answers_alone_as_in_a_mixed_batch(engine: ImageClassifier, images: list[Image.Image]) -> None:
    full = Disclosure()
    terms = [
        [GOLD, at(0.9, full), at(0.7, full), at(0.5, full, cat=0.9), at(0.3, full, dog=-0.8)][i % 5] for i in range(48)
    ]
    together = engine.predict(images, terms)
    for image, term, expected in zip(images, terms, together, strict=True):
        (alone,) = engine.predict([image], [term])
        assert dict(alone) == pytest.approx(dict(expected), abs=1e-4)
        assert alone[0].label == expected[0].label
    assert engine.predict(images, terms) == together


def test_another_load_with_the_same_secret_gives_the_same_answers(
    engine: ImageClassifier, images: list[Image.Image]
) -> None:
    again = ImageClassifier.load(shipped(MODEL, Task.CLASSIFICATION))
    again.install(engine.head.calibration, SECRET)  # as after a restart, from the store
    assert again.fingerprint == engine.fingerprint
    terms = [at(0.7)] * len(images)
    assert again.predict(images, terms) == engine.predict(images, terms)


def test_fingerprint_is_the_same_in_another_process(engine: ImageClassifier) -> None:
    code = (
        "from deployments.config import *; from deployments.engines.images.classifier import ImageClassifier as C;"
        f"print(C.load(ModelSpec(id='x', task=Task.CLASSIFICATION, source='models/{MODEL}')).fingerprint)"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == engine.fingerprint


def test_scores_show_no_more_than_the_terms_disclose(engine: ImageClassifier, images: list[Image.Image]) -> None:
    for answer in engine.predict(images, [at(0.8)] * len(images)):
        assert len(answer) == 1 and answer[0].score is None
        assert answer[0].to_json() == {"label": answer[0].label, "score": None}
    for (one,) in engine.predict(images, [at(0.8, Disclosure(labels=1, digits=2))] * len(images)):
        assert one.score is not None and one.score == round(one.score, 2) > 0.0
    (five,) = engine.predict(images[:1], [at(0.8, Disclosure(labels=5, digits=1))])
    assert len(five) == 5
    assert all(score == round(score, 1) for _, score in five)
    assert [score for _, score in five] == sorted((score for _, score in five), reverse=True)


@pytest.mark.parametrize(("labels", "top_k", "shown"), [(None, None, 10), (None, 3, 3), (1, 3, 1), (5, 100, 5)])
def test_top_k_only_narrows(engine: ImageClassifier, labels: int | None, top_k: int | None, shown: int) -> None:
    (answer,) = engine.predict(scenes(1, 32, 32), [Modulation(disclosure=Disclosure(labels=labels))], [top_k])
    assert len(answer) == shown
    assert set(answer[0].to_json()) == {"label", "score"}


def test_levels_change_answers_as_sold_and_the_audit_counts_them(
    engine: ImageClassifier, images: list[Image.Image]
) -> None:
    level = 0.21
    gold_before = engine.audit().get(1.0, (0, 0))
    gold = [answer[0].label for answer in engine.predict(images, [GOLD] * 48)]
    low = [answer[0].label for answer in engine.predict(images, [at(level)] * 48)]
    agreed = sum(a == b for a, b in zip(gold, low, strict=True))
    assert agreed < 40
    assert engine.audit()[1.0] == (gold_before[0] + 48, gold_before[1] + 48)
    assert engine.audit()[level] == (48, agreed)
    engine.predict(images, [at(level, truck=0.99)] * 48)  # the audit judges utility, before focus
    assert engine.audit()[level] == (96, 2 * agreed)


def test_delivered_agreement_is_the_level_on_the_bundled_features(engine: ImageClassifier) -> None:
    sample = engine.calibration_sample(REPOSITORY / "models" / MODEL / "calibration.safetensors")
    assert sample.features.shape == (4000, 512)
    assert sample.readout is None
    for level in (0.9, 0.7, 0.5):
        position = torch.full((4000,), engine.head.calibration.position(level))
        noisy = sample.logits + engine.head.ladder.noise(sample.features, position)
        assert (noisy.argmax(1) == sample.logits.argmax(1)).float().mean().item() == pytest.approx(level, abs=0.01)


def test_focus_turns_answers_towards_and_away_from_a_class(engine: ImageClassifier) -> None:
    images = scenes(128, 32, 32, seed=5)
    answers = [a[0].label for a in engine.predict(images, [GOLD] * 128)]
    favoured = max(set(answers), key=answers.count)

    def count(strength: float) -> int:
        terms = [Modulation(focus={favoured: strength})] * 128
        return [a[0].label for a in engine.predict(images, terms)].count(favoured)

    assert count(-0.9) < answers.count(favoured) < count(0.9)


def test_an_unknown_focus_class_is_refused_before_a_batch(engine: ImageClassifier) -> None:
    with pytest.raises(InvalidRequest, match="no class 'unicorn'") as refused:
        engine.prepare(Modulation(focus={"unicorn": 0.5}))
    assert refused.value.param == "focus.unicorn"


def test_an_uncalibrated_model_serves_level_1_and_nothing_else(
    engine: ImageClassifier, images: list[Image.Image]
) -> None:
    fresh = ImageClassifier.load(shipped(MODEL, Task.CLASSIFICATION))
    assert fresh.predict(images[:2], [GOLD, GOLD]) == engine.predict(images[:2], [GOLD, GOLD])
    assert not fresh.calibrated and fresh.floor == 1.0 and fresh.prepare(GOLD) == []
    for terms in (at(0.9), Modulation(focus={"cat": 0.5})):
        for refused in (
            lambda terms=terms: fresh.prepare(terms),
            lambda terms=terms: fresh.predict(images[:1], [terms]),
        ):
            with pytest.raises(Unavailable) as error:
                refused()
            assert error.value.code == "levels_pending"


def test_a_calibration_of_another_model_is_refused(engine: ImageClassifier, tmp_path: Path) -> None:
    other = saved_resnet(tmp_path, "other.pth")
    with pytest.raises(ValueError, match="calibration of"):
        other.install(engine.head.calibration, SECRET)
    with pytest.raises(LoadError, match="other weights"):
        other.calibration_sample(REPOSITORY / "models" / MODEL / "calibration.safetensors")


def test_a_transformers_classifier_loads_calibrates_on_a_folder_and_serves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = dict(enumerate(("cat", "dog", "bird")))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(image_size=32, patch_size=8, id2label=names, label2id={n: i for i, n in names.items()}, **shape)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    engine = ImageClassifier.load(ModelSpec(id="vit", task=Task.CLASSIFICATION, source=str(tmp_path / "vit")))
    assert (engine.classes, engine.features) == (("cat", "dog", "bird"), 32)

    (tmp_path / "pictures/deep").mkdir(parents=True)
    for index, image in enumerate(scenes(120, 40, 30)):
        image.save(tmp_path / "pictures" / ("deep" if index % 2 else ".") / f"{index}.png")
    sample = engine.calibration_sample(tmp_path / "pictures")
    assert (sample.features.shape, sample.logits.shape) == ((120, 32), (120, 3))
    engine.install(engine.fit(sample, SECRET), SECRET)
    assert isinstance(engine.model.classifier.modulation, Head)
    assert [len(a) for a in engine.predict(scenes(3, 40, 30), [GOLD, at(0.8), GOLD])] == [3, 1, 3]


def test_too_few_calibration_images_are_refused(engine: ImageClassifier, tmp_path: Path) -> None:
    for index, image in enumerate(scenes(3, 16, 16)):
        image.save(tmp_path / f"{index}.jpg")
    with pytest.raises(LoadError, match="at least 100 images; .* holds 3"):
        engine.calibration_sample(tmp_path)


def test_a_damaged_calibration_image_is_named(engine: ImageClassifier, tmp_path: Path) -> None:
    for index in range(100):
        (tmp_path / f"{index:03}.jpg").write_bytes(b"no picture")
    with pytest.raises(LoadError, match="000.jpg"):
        engine.calibration_sample(tmp_path)


def test_a_classifier_that_scales_its_logits_answers_the_same_with_its_head(images: list[Image.Image]) -> None:
    engine = ImageClassifier.load(shipped(MODEL, Task.CLASSIFICATION))
    plain = engine._run
    scaled = replace_run(engine, lambda pixels: 0.25 * plain(pixels))
    before = scaled.predict(images[:4], [GOLD] * 4)
    calibrated(scaled)
    after = scaled.predict(images[:4], [GOLD] * 3 + [at(0.7)])
    for own, other in zip(before[:3], after[:3], strict=True):
        assert own[0].label == other[0].label and own[0].score == pytest.approx(other[0].score, abs=1e-5)


def replace_run(engine: ImageClassifier, run: Callable[[torch.Tensor], torch.Tensor]) -> ImageClassifier:
    """The engine of a model that does more after its final layer."""
    engine._run = run
    return engine


def test_a_batch_is_read_bit_for_bit_as_each_of_its_pictures(engine: ImageClassifier) -> None:
    logits = torch.randn(24, len(CLASSES), generator=torch.Generator().manual_seed(0)).round(decimals=1) * 3
    items = [ItemLogits(row, row, row) for row in logits]
    shown = [Disclosure(labels=1 + at % 4, digits=None if at % 2 else 3, logprobs=False) for at in range(24)]
    terms = [at(0.7, disclosure) for disclosure in shown]
    asked = [None if number % 3 else 1 + number % 5 for number in range(24)]
    read = engine.readout(items, terms, asked)
    for item, modulation, most, labels in zip(items, terms, asked, read, strict=True):
        count = min(len(CLASSES), modulation.disclosure.labels or len(CLASSES), most or len(CLASSES))
        scores, indices = item.logits.softmax(dim=0).topk(count)
        first = int(item.logits.argmax())
        named = [first, *(int(indices[0]) if index == first else int(index) for index in indices[1:])]
        assert [label.label for label in labels] == [CLASSES[index] for index in named]
        assert [label.score for label in labels] == [modulation.disclosure.score(float(score)) for score in scores]
        assert engine.answer(item, modulation, most) == labels
