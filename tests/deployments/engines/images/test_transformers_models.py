"""transformers' folders: the pipeline's own answer, or one line that says what to mend."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    ConvNextImageProcessor,
    DPTImageProcessor,
    MobileViTImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)
from transformers.utils import logging

from deployments.config import REPOSITORY, ModelSpec, Task
from deployments.engines.errors import LoadError
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.segmenter import ImageSegmenter
from tests.deployments.vision_support import GOLD, scenes

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8, "initializer_range": 0.3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.set_verbosity_error()


def write(folder: Path, processor: Any = None, labels: int = 3, **config: Any) -> Path:
    """A tiny ViT of random weights, always the same ones."""
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**SHAPE | config, num_labels=labels)).save_pretrained(folder)
    (processor or ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(folder)
    return folder


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def load(folder: Path, **more: Any) -> ImageClassifier:
    return ImageClassifier.load(ModelSpec(id="m", task=Task.CLASSIFICATION, source=str(folder), **more))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "id2label with gaps": (
        configured(id2label={"0": "a", "2": "b", "5": "c"}),
        "id2label in config.json names 3 classes as 0, 2, 5, but logits are numbered 0 to 2; set labels to all names",
    ),
    "id2label from 1": (configured(id2label={"1": "a", "2": "b", "3": "c"}), "as 1, 2, 3, but logits are numbered 0"),
    "id2label of fewer": (configured(id2label={"0": "a", "1": "b"}), "name them all in id2label there, or in labels"),
    "id2label of more": (configured(id2label={str(k): "a" for k in range(9)}), "name them all in id2label there"),
    "id2label of names": (configured(id2label={"a": 0, "b": 1, "c": 2}), "id2label in config.json must map numbers"),
    "id2label as a list": (configured(id2label=["a", "b", "c"]), "id2label in config.json must map numbers to names"),
    "multi-label": (
        configured(problem_type="multi_label_classification"),
        "scores each class by itself, with a sigmoid .problem_type multi_label_classification",
    ),
    "regression": (configured(problem_type="regression"), "answers numbers .problem_type regression"),
    "one logit": (lambda folder: write(folder, labels=1), "answers one logit, a yes or no by a sigmoid"),
    "pointer": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "model.safetensors is a git-lfs pointer.*git lfs pull",
    ),
    "half of the weights": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:9000]),
        "model.safetensors is cut short",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
    "no processor": (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json is miss"),
    "half a processor": (
        lambda folder: (folder / "preprocessor_config.json").write_text('{"do_res'),
        "preprocessor_config.json is cut short or no JSON",
    ),
    "another size": (
        lambda folder: ViTImageProcessor().save_pretrained(folder),
        r"fails on a grey picture: Input image size \(224\*224\) doesn't match model \(32\*32\)",
    ),
    "fewer layers": (
        configured(num_hidden_layers=1),
        r"has more layers than its config.json says, such as vit.\w+.*\.1\.",
    ),
    "another architecture": (configured(model_type="nosuch"), "model type `nosuch` but Transformers does not"),
    "another task": (configured(model_type="llama"), "cannot load"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_folder_that_cannot_be_served_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    spoil, said = BROKEN[kind]
    spoil(write(tmp_path))
    with pytest.raises(LoadError, match=said) as refused:
        load(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_weights_saved_from_a_wrapper_are_the_models(prefix: str, tmp_path: Path) -> None:
    state = load_file(write(tmp_path / "plain") / "model.safetensors")
    write(tmp_path / "wrapped")
    named = {prefix + name: value for name, value in state.items()}
    save_file(named, tmp_path / "wrapped/model.safetensors", metadata={"format": "pt"})
    pictures = scenes(2, 40, 30)
    plain, wrapped = (load(tmp_path / name).predict(pictures, [GOLD] * 2) for name in ("plain", "wrapped"))
    assert plain == wrapped


@pytest.mark.parametrize("names", [{"0": "a", "2": "b", "5": "c"}, {"0": "a"}, None])
def test_labels_name_what_id2label_does_not(names: Any, tmp_path: Path) -> None:
    configured(id2label=names)(write(tmp_path))
    engine = load(tmp_path, labels=("x", "y", "z"))
    assert engine.classes == ("x", "y", "z")
    with pytest.raises(LoadError, match="has other shapes|have other shapes"):
        load(tmp_path, labels=("x", "y"))


def test_a_large_photograph_is_what_the_pipeline_makes_of_it(tmp_path: Path) -> None:
    engine = load(write(tmp_path))
    (photograph,) = scenes(1, 1600, 1200)
    own = pipeline("image-classification", model=str(tmp_path), top_k=3)(photograph)
    (answer,) = engine.predict([photograph], [GOLD])
    assert [label for label, _ in answer] == [row["label"] for row in own]
    assert [score for _, score in answer] == pytest.approx([row["score"] for row in own], abs=1e-6)


def test_two_preprocessings_or_configurations_never_share_a_calibration(tmp_path: Path) -> None:
    edge, square = {"shortest_edge": 32}, {"height": 32, "width": 32}
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "plain": (None, {}),
        "bicubic": (ViTImageProcessor(size=square, resample=3), {}),
        "mean": (ViTImageProcessor(size=square, image_mean=[0.4] * 3), {}),
        "crop_pct": (ConvNextImageProcessor(size=edge, crop_pct=0.875), {}),
        "another crop_pct": (ConvNextImageProcessor(size=edge, crop_pct=1.0), {}),
        "BGR": (MobileViTImageProcessor(size=edge, crop_size=square, do_flip_channel_order=True), {}),
        "RGB": (MobileViTImageProcessor(size=edge, crop_size=square, do_flip_channel_order=False), {}),
        "squashed": (DPTImageProcessor(size=square, keep_aspect_ratio=False), {}),
        "kept": (DPTImageProcessor(size=square, keep_aspect_ratio=True, ensure_multiple_of=8), {}),
        "epsilon": (None, {"layer_norm_eps": 1e-3}),
        "activation": (None, {"hidden_act": "relu"}),
    }
    found = {name: load(write(tmp_path / name, *way[:1], **way[1])).fingerprint for name, way in ways.items()}
    assert len(set(found.values())) == len(ways), found
    assert load(write(tmp_path / "elsewhere")).fingerprint == found["plain"]


def timm_folder(folder: Path) -> Path:
    """What the hub holds of a model of timm: its own config.json, and no preprocessor_config.json."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    folder.mkdir()
    save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), folder / "model.safetensors")
    pretrained = {
        "input_size": [3, 64, 64], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic",
        "crop_pct": 0.9, "num_classes": 3, "pool_size": [2, 2], "first_conv": "conv1.0", "classifier": "fc",
    }  # fmt: skip
    config = {"architecture": "resnet10t", "num_classes": 3, "num_features": 512, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(config | {"label_names": ["cat", "dog", "bird"]}))
    return folder


def test_a_model_of_timm_answers_as_its_pipeline(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "m")
    engine = load(folder)
    assert engine.classes == ("cat", "dog", "bird")
    pictures = scenes(2, 100, 70)
    theirs = pipeline("image-classification", model=str(folder), top_k=3)(pictures)
    for picture, own in zip(pictures, theirs, strict=True):
        (answer,) = engine.predict([picture], [GOLD])
        assert dict(answer) == pytest.approx({row["label"]: row["score"] for row in own}, abs=1e-6)


def test_a_model_of_timm_without_timm_names_the_extra(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "m")
    code = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.startswith("timm") else find(name, *more)
sys.modules["timm"] = None
from deployments.config import ModelSpec, Task
from deployments.engines.images.classifier import ImageClassifier
try:
    ImageClassifier.load(ModelSpec(id="m", task=Task.CLASSIFICATION, source={str(folder)!r}))
except ValueError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert said.stdout == f"m: '{folder}' needs another package: pip install 'aim-serve[timm]'\n"


@pytest.mark.parametrize("labels", [1, 3])
def test_a_segmenter_needs_a_choice_among_classes(labels: int, tmp_path: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    size = {"hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}
    config = SegformerConfig(depths=[1, 1, 1, 1], num_labels=labels, **size)
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    configured(id2label={str(k): f"class {k}" for k in range(1, labels + 1)})(tmp_path)
    with pytest.raises(LoadError, match="answers one logit|set labels to all names in the order of the logits"):
        ImageSegmenter.load(ModelSpec(id="m", task=Task.SEGMENTATION, source=str(tmp_path)))
