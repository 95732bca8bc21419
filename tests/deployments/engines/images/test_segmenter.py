"""The segmenter: gold is the plain model at the picture's size, rows are independent, masks and audit are exact."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from deployments.config import REPOSITORY, ModelSpec, Task
from deployments.engines.errors import LoadError
from deployments.engines.images import segmenter as module
from deployments.engines.images.decoding import encode_label_map
from deployments.engines.images.sample import UpsamplingReadout
from deployments.engines.images.segmenter import ImageSegmenter, Segment
from policies.calibration.calibration import Calibration
from policies.terms import Disclosure, Modulation
from tests.deployments.vision_support import GOLD, SECRET, at, calibrated, needs_shared, scenes, shipped

CLASSES = "sky building pole road pavement tree sign fence car pedestrian bicyclist".split()
MODEL = "segformer-b0-camvid"
FOLDER = REPOSITORY / "models" / MODEL


@pytest.fixture(scope="module")
def engine() -> ImageSegmenter:
    return calibrated(ImageSegmenter.load(shipped(MODEL, Task.SEGMENTATION)))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return scenes(4, 480, 360) + scenes(2, 200, 300, seed=1)


def label_map(answer: list[Segment], classes: Sequence[str] = CLASSES) -> np.ndarray:
    """The masks of an answer as one map of class indices; fails where they overlap or leave a hole."""
    masks = np.stack([np.asarray(Image.open(io.BytesIO(segment.mask))) == 255 for segment in answer])
    assert (masks.sum(axis=0) == 1).all()
    indices = np.array([classes.index(segment.label) for segment in answer])
    return indices[masks.argmax(axis=0)]


def test_the_shipped_model_says_what_it_is(engine: ImageSegmenter) -> None:
    assert (engine.model_id, engine.task, list(engine.classes)) == (MODEL, Task.SEGMENTATION, CLASSES)
    assert engine.features == 256
    assert 0.01 <= engine.floor <= 0.3
    assert engine.preprocess(Image.new("RGB", (900, 700))).shape == (3, 240, 320)


@pytest.mark.parametrize("level", [1.0, 0.7])
def test_a_label_map_has_the_masks_in_one_picture(
    engine: ImageSegmenter, images: list[Image.Image], level: float
) -> None:
    for image in (images[0], images[-1]):
        (item,) = engine.forward([engine.preprocess(image)], [at(level)])
        size = (image.height, image.width)
        masks, whole = engine.answer(item, at(level), size), engine.label_map(item, at(level), size)
        read = Image.open(io.BytesIO(whole.map))
        assert (read.mode, read.size) == ("P", image.size)
        assert np.array_equal(np.asarray(read), label_map(masks))
        told = [(region.label, region.score) for region in whole.regions]
        assert told == [(segment.label, segment.score) for segment in masks]
        assert [CLASSES[region.number] for region in whole.regions] == [segment.label for segment in masks]
        shown = np.asarray(read.convert("RGB")).reshape(-1, 3)
        assert len(np.unique(shown, axis=0)) == len(masks), "colours told apart"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
@pytest.mark.parametrize("level", [1.0, 0.7])
def test_runs_are_the_masks_by_cocos_own_reading(
    engine: ImageSegmenter, images: list[Image.Image], level: float
) -> None:
    (item,) = engine.forward([engine.preprocess(images[-1])], [at(level)])
    size = (images[-1].height, images[-1].width)
    masks, runs = engine.answer(item, at(level), size), engine.runs(item, at(level), size)
    assert [(run.label, run.score) for run in runs] == [(part.label, part.score) for part in masks]
    for run, part in zip(runs, masks, strict=True):
        read = coco.decode(run.to_json()["segmentation"])
        assert np.array_equal(read * 255, np.asarray(Image.open(io.BytesIO(part.mask))))


def test_a_label_map_of_many_classes_is_exact() -> None:
    labels = np.arange(300, dtype=np.int16).reshape(20, 15)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_label_map(labels, 300)))), labels)
    few = Image.open(io.BytesIO(encode_label_map(labels % 256, 256)))
    assert few.mode == "P" and np.array_equal(np.asarray(few), labels % 256)


def test_gold_is_the_plain_model_at_the_pictures_size(engine: ImageSegmenter, images: list[Image.Image]) -> None:
    plain = SegformerForSemanticSegmentation.from_pretrained(FOLDER, dtype=torch.float32).eval()
    processor = SegformerImageProcessor.from_pretrained(FOLDER)
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        logits = plain(pixel_values=pixels).logits
    mixed = engine.forward(list(pixels), [at(0.7), GOLD, at(0.9), GOLD, GOLD, GOLD])
    assert [torch.equal(item.logits, row) for item, row in zip(mixed, logits, strict=True)] == [False, True] * 2 + [
        True
    ] * 2
    for image, answer, row in zip(images, engine.predict(images, [GOLD] * len(images)), logits, strict=True):
        full = F.interpolate(row[None], (image.height, image.width), mode="bilinear", align_corners=False)[0]
        expected = full.argmax(0).numpy()
        assert np.array_equal(label_map(answer), expected)
        top = full.softmax(0).amax(0).numpy()
        for segment in answer:
            mean = top[expected == CLASSES.index(segment.label)].mean()
            assert segment.score == pytest.approx(float(mean), abs=1e-5)


def test_a_picture_answers_alone_as_in_a_mixed_batch(engine: ImageSegmenter, images: list[Image.Image]) -> None:
    terms = [GOLD, at(0.9), at(0.7), at(0.5, car=0.9), at(0.3), at(0.7, road=-0.8)]
    together = engine.predict(images, terms)
    for image, term, expected in zip(images, terms, together, strict=True):
        (alone,) = engine.predict([image], [term])
        assert (label_map(alone) != label_map(expected)).mean() < 1e-4
    assert engine.predict(images, terms) == together


def test_masks_are_png_and_json_carries_them_as_base64(engine: ImageSegmenter, images: list[Image.Image]) -> None:
    segment = engine.predict(images[-1:], [GOLD])[0][0]
    mask = Image.open(io.BytesIO(segment.mask))
    assert (mask.format, mask.mode, mask.size) == ("PNG", "L", (200, 300))
    assert segment.to_json().keys() == {"label", "score", "mask"}


def test_scores_show_no_more_than_the_terms_disclose(engine: ImageSegmenter, images: list[Image.Image]) -> None:
    answers = engine.predict(images, [at(0.8)] * len(images))
    assert all(s.score is None for answer in answers for s in answer)
    granted = engine.predict(images, [at(0.8, Disclosure(digits=2))] * len(images))
    assert all(s.score and s.score == round(s.score, 2) for answer in granted for s in answer)


def test_the_audit_counts_some_pixels_of_the_answer(engine: ImageSegmenter, images: list[Image.Image]) -> None:
    image, pixels, level = images[0], len(range(3, 480, 7)) * len(range(3, 360, 7)), 0.41
    gold_before = engine.audit().get(1.0, (0, 0))
    (gold,) = engine.predict([image], [GOLD])
    (low,) = engine.predict([image], [at(level)])
    agreed = int((label_map(gold) == label_map(low))[3::7, 3::7].sum())
    assert engine.audit()[1.0] == (gold_before[0] + pixels, gold_before[1] + pixels)
    assert engine.audit()[level] == (pixels, agreed)
    engine.predict([image], [at(level, pedestrian=0.99)])  # the audit judges utility, before focus
    assert engine.audit()[level] == (2 * pixels, 2 * agreed)


def test_a_large_picture_read_in_bands_is_the_same(engine: ImageSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(11, 60, 80, generator=torch.Generator().manual_seed(0))
    whole, scores = engine.read(logits, (437, 611))
    monkeypatch.setattr(module, "_WHOLE_ELEMENTS", 11 * 611 * 50)
    banded, banded_scores = engine.read(logits, (437, 611))
    assert (whole != banded).float().mean() < 1e-4
    assert banded_scores == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("scale", [1, 4, 5, 6])
def test_readout_is_interpolation_away_from_the_tiles_edges(scale: int) -> None:
    # Tiles cut from a larger map: what is read of a tile equals what the whole map's interpolation shows there.
    whole = torch.randn(1, 7, 30, 24, generator=torch.Generator().manual_seed(0))
    tile = whole[:, :, 10:20, 8:16]
    readout = UpsamplingReadout(1, 10, 8, scale, 4, 500, torch.device("cpu"))
    read = readout(tile.movedim(1, -1).reshape(-1, 7))
    full = F.interpolate(whole, scale_factor=scale, mode="bilinear", align_corners=False)[0]
    expected = full[:, readout.y[0] + 10 * scale, readout.x[0] + 8 * scale].T
    assert torch.allclose(read, expected, atol=1e-5)


def test_the_bundled_sample_is_read_at_the_clients_resolution(engine: ImageSegmenter) -> None:
    sample = engine.calibration_sample(FOLDER / "calibration.safetensors")
    assert (sample.features.shape[1], sample.logits.shape[1]) == (256, 11)
    assert sample.readout is not None
    assert len(sample.readout(sample.logits)) > 2 * len(sample.logits)
    assert sample.metric is not None and sample.metric.shape == (256, 32)
    sizes = [p.stat().st_size for p in (REPOSITORY / "models").glob("*/calibration.safetensors")]
    assert sum(sizes) <= 15_000_000


def test_levels_are_delivered_on_pictures_that_did_not_calibrate_them(engine: ImageSegmenter) -> None:
    archive = needs_shared("data/camvid-trainval.zip")
    with zipfile.ZipFile(archive) as file:
        names = sorted(n for n in file.namelist() if "val/images/" in n and not n.endswith("/"))[1::10]
        images = [Image.open(io.BytesIO(file.read(name))).convert("RGB") for name in names]
    for level in (0.91, 0.71):
        engine.predict(images, [at(level)] * len(images))
        rows, agreed = engine.audit()[level]
        assert agreed / rows == pytest.approx(level, abs=0.03)


def test_focus_turns_pixels_towards_and_away_from_a_class(engine: ImageSegmenter, images: list[Image.Image]) -> None:
    def pixels(strength: float) -> int:
        terms = Modulation(focus={"building": strength} if strength else {})
        answers = engine.predict(images, [terms] * len(images))
        return sum(int((label_map(answer) == 1).sum()) for answer in answers)

    assert pixels(-0.9) < pixels(0.0) < pixels(0.9)


def test_a_users_segmenter_calibrates_on_a_folder_of_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = {"hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}
    config = SegformerConfig(depths=[1, 1, 1, 1], num_labels=5, **size)
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    SegformerImageProcessor(size={"height": 64, "width": 96}).save_pretrained(tmp_path / "model")
    spec = ModelSpec(
        id="mine", task=Task.SEGMENTATION, source=str(tmp_path / "model"), labels=("sky", "sea", "sand", "tree", "boat")
    )
    engine = ImageSegmenter.load(spec)
    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(scenes(100, 96, 64)):
        image.save(tmp_path / "pictures" / f"{index}.jpg")
    sample = engine.calibration_sample(tmp_path / "pictures")
    assert sample.features.shape == (100 * 6 * 8 * 8, 16)
    gaps = (1.0,) * 5
    engine.install(Calibration(engine.fingerprint, 1.0, 16, ((0, 1.0), (16_000, 0.5)), gaps, gaps, 100), SECRET)
    assert {segment.label for segment in engine.predict(scenes(1, 96, 64), [GOLD])[0]} <= set(spec.labels or ())


def interpolated(folder: Path, architecture: str) -> ModelSpec:
    """A segmenter of random weights that interpolates what its last convolution answers."""
    from transformers import ConvNextConfig, DPTConfig, DPTForSemanticSegmentation, DPTImageProcessor

    torch.manual_seed(0)
    if architecture == "upernet":
        stages = ["stage1", "stage2", "stage3", "stage4"]
        backbone = ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], out_features=stages)
        shape = {"hidden_size": 16, "pool_scales": [1, 2], "use_auxiliary_head": False}
        model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, num_labels=4, **shape))
        processor = SegformerImageProcessor(size={"height": 128, "width": 160})
    else:
        shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
        config = DPTConfig(
            **shape, image_size=96, patch_size=16, num_labels=4, backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=16, readout_type="ignore", use_auxiliary_head=False,
        )  # fmt: skip
        model = DPTForSemanticSegmentation(config)
        processor = DPTImageProcessor(size={"height": 96, "width": 96})
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.0 / parameter[0].numel() ** 0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return ModelSpec(id=architecture, task=Task.SEGMENTATION, source=str(folder), max_batch_size=8)


@pytest.mark.parametrize("architecture", ["upernet", "dpt"])
def test_a_model_that_interpolates_its_logits_is_modulated_before_that(tmp_path: Path, architecture: str) -> None:
    engine = ImageSegmenter.load(interpolated(tmp_path / "model", architecture))
    pictures = scenes(124, 120, 90)
    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(pictures[:100]):
        image.save(tmp_path / "pictures" / f"{index}.png")
    engine.install(engine.fit(engine.calibration_sample(tmp_path / "pictures"), SECRET), SECRET)
    fresh = pictures[100:]
    clean = [label_map(answer, engine.classes) for answer in engine.predict(fresh, [GOLD] * len(fresh))]
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        out = model(**processor(images=fresh, return_tensors="pt"))
    wanted = processor.post_process_semantic_segmentation(out, target_sizes=[(90, 120)] * len(fresh))
    same = torch.stack([torch.from_numpy(mine) == its for mine, its in zip(clean, wanted, strict=True)])
    assert len(torch.stack(wanted).unique()) > 1 and float(same.float().mean()) > 0.9995
    modulated = [label_map(answer, engine.classes) for answer in engine.predict(fresh, [at(0.7)] * len(fresh))]
    kept = np.mean([mine == its for mine, its in zip(modulated, clean, strict=True)])
    # Of so small a map a fifth are edges, of which the tiles that calibrate have none.
    assert kept == pytest.approx(0.7, abs=0.06)
    rows, agreed = engine.audit()[0.7]
    assert agreed / rows == pytest.approx(kept, abs=0.01)
    engine.judge_live()
    (report,) = engine.reports()
    assert report.expected.level == pytest.approx(kept, abs=0.1)


def test_a_missing_processor_or_head_is_refused(tmp_path: Path) -> None:
    from transformers import SegformerModel

    SegformerModel(SegformerConfig()).save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="cannot load"):
        ImageSegmenter.load(ModelSpec(id="bare", task=Task.SEGMENTATION, source=str(tmp_path)))
    SegformerImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="lacks weights of this task"):
        ImageSegmenter.load(ModelSpec(id="bare", task=Task.SEGMENTATION, source=str(tmp_path)))


def test_masks_are_judged_and_refitted_at_the_resolution_of_the_answer(engine: ImageSegmenter) -> None:
    fresh = ImageSegmenter.load(shipped("segformer-b0-camvid", Task.SEGMENTATION))
    honest = engine.head.calibration
    short = replace(honest, curve=tuple((position, value**0.5) for position, value in honest.curve))
    fresh.install(short, SECRET)
    fresh.least_live = 12  # type: ignore[misc]
    pictures = scenes(32, 240, 180)

    def levels() -> tuple[float, float]:
        fresh.predict(pictures, [at(0.7)] * len(pictures))
        fresh.judge_live()
        (report,) = fresh.reports()
        assert report.delivered.groups == 32
        return report.delivered.level, report.expected.level

    delivered, expected = levels()
    assert delivered < 0.6 and expected == pytest.approx(delivered, abs=0.05)
    fresh.install(fresh.fit(fresh.sample_of(fresh.live_rows())[0], SECRET, stored=short), SECRET)
    # A refit sees a few tiles of each picture.
    assert levels()[0] == pytest.approx(0.7, abs=0.06)
