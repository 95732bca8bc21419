"""Every family of image classifiers and segmenters of both libraries, with random weights: its library's own answer at
level 1.0, levels and focus that move it, or one line on why it is not served. docs/vision-models.md lists them."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, pipeline
from transformers.models.auto import modeling_auto
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.utils import logging

from deployments.config import REPOSITORY, ModelSpec, Task
from deployments.engines.errors import LoadError
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.engine import VisionEngine
from deployments.engines.images.segmenter import ImageSegmenter
from deployments.engines.images.torchvision_models import IMAGENET_MEAN, IMAGENET_STD, _SquareResize
from policies.calibration.calibration import Calibration
from policies.field.variance import MAX_VARIANCE, MIN_VARIANCE, POSITIONS
from policies.head.final import find_final, logits_of
from policies.terms import Modulation
from tests.deployments.vision_support import GOLD, SECRET, at, scenes

CLASSES = ("sky", "sea", "sand", "tree")
SIDE = 64
PICTURES = [*scenes(40, 90, 60), *scenes(8, 50, 70, seed=1)]
VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": SIDE,
    "patch_size": 16,
}  # fmt: skip
DINO = {key: VIT[key] for key in VIT if key != "intermediate_size"} | {"mlp_ratio": 2}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
SWIN = {"image_size": SIDE, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 2}
TOWER = {key: VIT[key] for key in VIT} | {"projection_dim": 16}
NEAT = {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 8}
PYRAMID: dict[str, Any] = STAGES | {"num_attention_heads": [1, 2, 2, 4], "image_size": SIDE}
SEGFORMER = {**STAGES, "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}
MOBILEVIT = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "image_size": SIDE}
LEVIT = {
    "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1], "key_dim": [8, 8, 8],
    "image_size": SIDE, "down_ops": [["Subsample", 8, 2, 2, 2, 2], ["Subsample", 8, 3, 2, 2, 2]],
}  # fmt: skip

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "beit": VIT,
    "bit": {**STAGES, "embedding_size": 8, "num_groups": 2},
    "clip": {"vision_config": TOWER},
    "convnext": STAGES,
    "convnextv2": STAGES,
    "cvt": {"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "data2vec-vision": VIT,
    "deit": VIT,
    "dinov2": DINO,
    "dinov2_with_registers": DINO,
    "donut-swin": SWIN,
    "efficientnet": {"image_size": SIDE, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    "focalnet": {"image_size": SIDE, "embed_dim": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]},
    "hgnet_v2": {
        **STAGES, "embedding_size": 8, "stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 16, 16],
        "stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [16, 16, 16, 32], "stage_num_blocks": [1, 1, 1, 1],
    },
    "hiera": {"image_size": [SIDE, SIDE], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
              "masked_unit_size": [8, 8]},
    "ijepa": VIT,
    "levit": LEVIT,
    "metaclip_2": {"vision_config": TOWER},
    "mobilenet_v1": {"depth_multiplier": 0.25, "image_size": SIDE},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": SIDE},
    "mobilevit": MOBILEVIT,
    "mobilevitv2": {"width_multiplier": 0.25, "image_size": SIDE, "n_attn_blocks": [1, 1, 1]},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 1, "image_size": 16,
                  "_label_trainable_num_channels": 32},
    "poolformer": STAGES,
    "pvt": {**PYRAMID, "num_labels": len(CLASSES)},
    "pvt_v2": {**PYRAMID, "image_size": [SIDE, SIDE]},
    "regnet": {**STAGES, "embedding_size": 8, "groups_width": 8},
    "resnet": {**STAGES, "embedding_size": 8},
    "segformer": SEGFORMER,
    "siglip": {"vision_config": TOWER},
    "swin": SWIN,
    "swinv2": SWIN,
    "textnet": {"image_size": [SIDE, SIDE], "hidden_sizes": [8, 8, 8, 16, 16], "stem_out_channels": 8},
    "timm_wrapper": {"architecture": "resnet10t"},
    "vit": VIT,
    "vit_msn": VIT,
}  # fmt: skip
"""Model type: what makes its configuration small."""

SEGMENTERS: dict[str, dict[str, Any]] = {
    "beit": {**VIT, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "pool_scales": [1, 2]},
    "data2vec-vision": {**VIT, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "pool_scales": [1, 2]},
    "dpt": {**VIT, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 8, 8],
            "fusion_hidden_size": 16, "readout_type": "ignore"},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": SIDE},
    "mobilevit": {**MOBILEVIT, "aspp_out_channels": 16},
    "mobilevitv2": {"width_multiplier": 0.25, "image_size": SIDE, "n_attn_blocks": [1, 1, 1], "aspp_out_channels": 16},
    "sapiens2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
                 "head_config": {"upsample_out_channels": [16, 16], "conv_out_channels": [8]}},
    "segformer": SEGFORMER,
    "upernet": {"hidden_size": 16, "pool_scales": [1, 2], "auxiliary_channels": 8},
}  # fmt: skip

ONE_LAYER = "its logits are put together from the outputs of 'A' and 'B'"
NOT_PIXELS = "cannot be served: it takes"
NO_TASK = "its model_type in config.json is not that of"
TIPS = {
    "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 16,
    "backbone_config": {
        "model_type": "tipsv2_vision_model", **DINO, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4],
        "reshape_hidden_states": False,
    },
}  # fmt: skip
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "DeiTForImageClassificationWithTeacher": ("deit", VIT, ONE_LAYER),
    "LevitForImageClassificationWithTeacher": ("levit", LEVIT, ONE_LAYER),
    "SwiftFormerForImageClassification": (
        "swiftformer", {"embed_dims": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "image_size": SIDE}, ONE_LAYER,
    ),
    "PPLCNetForImageClassification": (
        "pp_lcnet", {"scale": 0.25, "class_expand": 32, "stem_channels": 8}, "the model answers no logits",
    ),
    "Siglip2ForImageClassification": (
        "siglip2", {"vision_config": {**TOWER, "num_patches": 16}},
        f"{NOT_PIXELS} pixel_attention_mask, spatial_shapes",
    ),
    "ImageGPTForImageClassification": (
        "imagegpt", {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 9, "n_positions": 64},
        f"{NOT_PIXELS} input_ids",
    ),
    "Tipsv2DptForSemanticSegmentation": ("tipsv2_dpt", TIPS, "more is done to the output of 'decoder.head'"),
    "DinatForImageClassification": ("dinat", {}, "needs another package: DinatForImageClassification requires the natten"),
    "MaskFormerForInstanceSegmentation": ("maskformer", {}, f"{NO_TASK} a segmenter with logits for each pixel"),
    "Mask2FormerForUniversalSegmentation": ("mask2former", {}, f"{NO_TASK} a segmenter with logits for each pixel"),
    "EomtForUniversalSegmentation": ("eomt", {}, f"{NO_TASK} a segmenter with logits for each pixel"),
    "DetrForSegmentation": ("detr", {}, f"{NO_TASK} a segmenter with logits for each pixel"),
}  # fmt: skip
"""Class: model type, what makes it small, and why it is refused."""
UNBUILT = {
    "shieldgemma2": "a language model that answers yes or no to a policy",
}
"""Model type: why there is no row of it."""
UNIVERSAL = {"detr", "eomt", "eomt_dinov3", "mask2former", "maskformer", "oneformer", "rf_detr", "videomt"}
"""Model types whose answers are masks of queries: all have one way into the loader, and one line out of it."""


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.set_verbosity_error()


def seen(model: nn.Module) -> nn.Module:
    """Weights with which answers differ from picture to picture."""
    draw = torch.Generator().manual_seed(0)
    for name, value in sorted(model.named_parameters()):
        if value.ndim > 1:
            value.data = torch.randn(value.shape, generator=draw) * value[0].numel() ** -0.5
        elif name.endswith(("bias", "gamma", "lambda_1", "lambda_2", "lambda1", "layer_scale_1", "layer_scale_2")):
            value.data = torch.randn(value.shape, generator=draw) * 0.2
        elif name.endswith("weight"):  # of norms, which some families make small
            value.data = torch.ones(value.shape)
    return model.eval()


def balance(model: nn.Module, run: Callable[[], Tensor]) -> None:
    """Make each class the answer to about as many pictures, as it is of a trained model."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train().momentum = None  # the mean of what it sees
    with torch.no_grad():
        run()
    model.eval()
    final = find_final(model, run).module
    if final.bias is None:
        unbiased(final, run)
    with torch.no_grad():
        logits = run().transpose(0, 1).flatten(1)
        spread = logits.std(1)
        final.weight.div_(spread.view(-1, *[1] * (final.weight.ndim - 1)))
        if final.bias is not None:
            final.bias.copy_((final.bias - logits.mean(1)) / spread)


@torch.no_grad()
def unbiased(final: nn.Module, run: Callable[[], Tensor]) -> None:
    """Take from the weights what all pictures have in common, for want of a bias to take it from."""
    given: list[Tensor] = []
    hook = final.register_forward_pre_hook(lambda _module, inputs: given.append(inputs[0]))
    run()
    hook.remove()
    mean = given[0].flatten(1).mean(0)
    final.weight.sub_((final.weight @ mean)[:, None] * mean / mean.square().sum())


def processor_of(model_type: str, side: int) -> Any:
    """The family's own processor, for small pictures."""
    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {"torchvision": "BitImageProcessor"}
    kind = getattr(transformers, names.get("torchvision") or names["pil"])
    square, more = {"height": side, "width": side}, {}
    if model_type == "siglip2":
        return kind(patch_size=16, max_num_patches=16)
    if model_type == "imagegpt":
        return kind(size=square, clusters=[[0.0] * 3, [1.0] * 3])
    size = square if "height" in (kind.size or {}) else {"shortest_edge": side}
    if getattr(kind, "crop_size", None):
        more = {"crop_size": square}
    return kind(size=size, **more)


def write(folder: Path, class_name: str, model_type: str, config: dict[str, Any], served: bool = True) -> None:
    torch.manual_seed(0)
    named = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: k for k, name in enumerate(CLASSES)}}
    if model_type == "timm_wrapper":
        named = {"num_labels": len(CLASSES), "label_names": list(CLASSES)}
        config = config | {"pretrained_cfg": {"input_size": [3, SIDE, SIDE], "interpolation": "bicubic"}}
    model = seen(getattr(transformers, class_name)(AutoConfig.for_model(model_type, **config, **named)))
    model.save_pretrained(folder)  # type: ignore[operator]
    if model_type != "timm_wrapper":  # whose processor is in its config.json
        processor_of(model_type, 16 if model_type == "perceiver" else SIDE).save_pretrained(folder)
    if not served:
        return
    pixels = AutoImageProcessor.from_pretrained(folder)(images=PICTURES[:24], return_tensors="pt")["pixel_values"]
    balance(model, lambda: model(pixel_values=pixels).logits)
    model.save_pretrained(folder)  # type: ignore[operator]


def first(name: str | tuple[str, ...]) -> str:
    return name if isinstance(name, str) else name[0]


@torch.inference_mode()
def calibrated(engine: VisionEngine, pictures: Iterable[Image.Image]) -> None:
    """A noise field as wide as the pictures differ, and a level 0.5 at which it is as large as their margins."""
    rows = torch.cat([engine.take(engine.final_input(engine.preprocess(p)[None]), k) for k, p in enumerate(pictures)])
    best = engine.clean_logits(rows).movedim(1, -1).flatten(0, -2).topk(2).values
    margin = float((best[:, 0] - best[:, 1]).median())
    cells = rows.movedim(1, -1).flatten(0, -2)
    ell = float(torch.pdist(cells[:: max(1, len(cells) // 200)]).median())
    position = round(1 + math.log(margin**2 / MIN_VARIANCE) / math.log(MAX_VARIANCE / MIN_VARIANCE) * (POSITIONS - 1))
    gaps = (margin,) * len(CLASSES)
    curve = ((0, 1.0), (position, 0.5))
    engine.install(Calibration(engine.fingerprint, ell, 64, curve, gaps, gaps, 100, block=engine.scheme.block), SECRET)


def load(task: Task, source: str, **more: Any) -> Any:
    kind = ImageClassifier if task is Task.CLASSIFICATION else ImageSegmenter
    return kind.load(ModelSpec(id="m", task=task, source=source, depth=64, **more))


def check_levels_of_labels(engine: ImageClassifier, pictures: list[Image.Image]) -> None:
    """A level below 1.0 moves answers, not all, and focus moves them to its class."""

    def labels(terms: Modulation) -> list[str]:
        return [answer[0].label for answer in engine.predict(pictures, [terms] * len(pictures))]

    calibrated(engine, pictures)
    gold = labels(GOLD)
    assert len(set(gold)) > 1, "the random model says the same of all pictures"
    assert 0.1 < np.mean([one == other for one, other in zip(labels(at(0.5)), gold, strict=True)]) < 1.0
    named = min(set(gold), key=gold.count)
    assert labels(Modulation(focus={named: 0.95})).count(named) > gold.count(named)


@pytest.mark.parametrize("model_type", CLASSIFIERS)
def test_a_classifier_of_transformers_is_its_pipeline(model_type: str, tmp_path: Path) -> None:
    class_name = first(modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[model_type])
    write(tmp_path, class_name, model_type, CLASSIFIERS[model_type])
    engine = load(Task.CLASSIFICATION, str(tmp_path))
    theirs = pipeline("image-classification", model=str(tmp_path), top_k=len(CLASSES))
    for picture in PICTURES[::10]:
        (answer,), own = engine.predict([picture], [GOLD]), theirs(picture)
        assert dict(answer) == pytest.approx({row["label"]: row["score"] for row in own}, abs=2e-5)
    check_levels_of_labels(engine, PICTURES)


def check_levels_of_masks(engine: ImageSegmenter, pictures: list[Image.Image]) -> None:
    """As `check_levels_of_labels`, by pixels."""

    def masks(terms: Modulation) -> np.ndarray:
        return np.stack([class_map(answer) for answer in engine.predict(pictures, [terms] * len(pictures))])

    calibrated(engine, pictures)
    gold = masks(GOLD)
    share = [float((gold == k).mean()) for k in range(len(CLASSES))]
    assert sum(value > 0.01 for value in share) > 1, "the random model says the same everywhere"
    assert 0.1 < (masks(at(0.5)) == gold).mean() < 0.99
    named = min((k for k in range(len(CLASSES)) if share[k] > 0), key=lambda k: share[k])
    assert (masks(Modulation(focus={CLASSES[named]: 0.95})) == named).mean() > share[named]


def class_map(answer: Any) -> np.ndarray:
    """The masks of an answer, ours or a pipeline's, as one map of class indices."""
    found: np.ndarray | None = None
    for part in answer:
        label, mask = (part["label"], part["mask"]) if isinstance(part, dict) else (part.label, part.mask)
        image = Image.open(io.BytesIO(mask)) if isinstance(mask, bytes) else mask
        found = np.full((image.height, image.width), 255) if found is None else found
        found[np.asarray(image) == 255] = CLASSES.index(label)
    assert found is not None
    return found


@pytest.mark.parametrize("model_type", SEGMENTERS)
def test_a_segmenter_of_transformers_is_its_pipeline(model_type: str, tmp_path: Path) -> None:
    class_name = first(modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[model_type])
    write(tmp_path, class_name, model_type, SEGMENTERS[model_type])
    engine = load(Task.SEGMENTATION, str(tmp_path))
    theirs = pipeline("image-segmentation", model=str(tmp_path))
    for picture in (PICTURES[0], PICTURES[-1]):
        (answer,) = engine.predict([picture], [GOLD])
        assert (class_map(answer) == class_map(theirs(picture))).mean() > 0.9999
    check_levels_of_masks(engine, PICTURES[:16])


@pytest.mark.parametrize("class_name", REFUSED)
def test_what_is_not_served_is_refused_at_load_in_one_line(class_name: str, tmp_path: Path) -> None:
    model_type, config, why = REFUSED[class_name]
    if model_type in {*UNIVERSAL, "dinat"}:  # whose configuration is read before any weights are
        AutoConfig.for_model(model_type).save_pretrained(tmp_path)
        torch.save({}, tmp_path / "pytorch_model.bin")
    else:
        write(tmp_path, class_name, model_type, config, served=False)
    task = Task.CLASSIFICATION if class_name.endswith(("Classification", "Teacher")) else Task.SEGMENTATION
    with pytest.raises(LoadError) as refused:
        load(task, str(tmp_path))
    said = re.sub(r"'[\w.]+' and '[\w.]+'", "'A' and 'B'", str(refused.value))
    assert why in said and "\n" not in said


def test_every_family_of_transformers_is_served_or_refused_by_name() -> None:
    refused = {model_type for model_type, _, _ in REFUSED.values()} | set(UNBUILT)
    classifiers = set(modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
    segmenters = set(modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES)
    assert classifiers == set(CLASSIFIERS) | (refused & classifiers)
    assert segmenters == set(SEGMENTERS) | (refused & segmenters)
    kinds = ("UNIVERSAL_SEGMENTATION", "INSTANCE_SEGMENTATION", "IMAGE_SEGMENTATION")
    assert UNIVERSAL == {n for kind in kinds for n in getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES")}


def test_the_documentation_lists_every_family() -> None:
    text = (REPOSITORY / "docs/vision-models.md").read_text()
    families = {*CLASSIFIERS, *SEGMENTERS, *UNBUILT, *UNIVERSAL, *(row[0] for row in REFUSED.values())}
    assert not [name for name in families if f"`{name}`" not in text]
    assert not [
        name for name in [*TORCHVISION, *TORCHVISION_REFUSED, *TORCHVISION_SEGMENTERS] if f"`{name}`" not in text
    ]


TORCHVISION: dict[str, dict[str, Any]] = {
    "alexnet": {},
    "convnext_tiny": {},
    "densenet121": {},
    "efficientnet_b0": {},
    "efficientnet_v2_s": {},
    "googlenet": {"arguments": {"transform_input": True}},
    "inception_v3": {"arguments": {"transform_input": False}, "input_size": 96},
    "maxvit_t": {"arguments": {"input_size": [224, 224]}, "input_size": 224},
    "mnasnet0_5": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "regnet_x_400mf": {},
    "regnet_y_400mf": {},
    "resnet18": {},
    "shufflenet_v2_x0_5": {},
    "swin_t": {},
    "swin_v2_t": {},
    "vgg11": {},
    "vit_b_32": {"arguments": {"image_size": 64}},
}
"""The smallest of each family, and what its specification says besides."""
FEW = {"maxvit_t": 8}
"""Pictures for what takes none smaller than 224 pixels."""
TORCHVISION_REFUSED = dict.fromkeys(("squeezenet1_0", "squeezenet1_1"), "more is done to the output of 'classifier.1'")
TORCHVISION_SEGMENTERS = ["deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large"]
ALL = bool(os.environ.get("AIM_ALL_MODELS"))
"""Whether every model of torchvision is tried, not the smallest of each family alone: minutes."""


def built(architecture: str, folder: Path, side: int, **arguments: Any) -> nn.Module:
    """A model of torchvision with random weights that tell pictures apart, saved as a state dict."""
    torch.manual_seed(0)
    model = seen(torchvision.models.get_model(architecture, weights=None, num_classes=len(CLASSES), **arguments))
    square = _SquareResize(side, IMAGENET_MEAN, IMAGENET_STD)
    pixels = torch.stack([square(picture) for picture in PICTURES[: FEW.get(architecture, 24)]])
    if architecture not in TORCHVISION_REFUSED and not architecture.startswith("lraspp"):
        balance(model, lambda: logits_of(model(pixels)))
    torch.save(model.state_dict(), folder / "w.pth")
    return model


def every(chosen: Iterable[str], module: Any) -> list[str]:
    return torchvision.models.list_models(module) if ALL else list(chosen)


def chosen(architecture: str) -> dict[str, Any]:
    """What a specification says of an architecture, by the smallest of its family."""
    near = [name for name in TORCHVISION if name.split("_")[0].rstrip("0123456789") in architecture]
    return TORCHVISION.get(architecture) or next((TORCHVISION[name] for name in near if TORCHVISION[name]), {})


@pytest.mark.parametrize("architecture", every([*TORCHVISION, *TORCHVISION_REFUSED], torchvision.models))
def test_a_classifier_of_torchvision_is_its_model(architecture: str, tmp_path: Path) -> None:
    more = {"input_size": SIDE, **chosen(architecture)}
    only = {"aux_logits": False, "init_weights": False} if architecture in ("googlenet", "inception_v3") else {}
    model = built(architecture, tmp_path, more["input_size"], **more.get("arguments", {}), **only)
    source = f"torchvision:{architecture}"
    if why := TORCHVISION_REFUSED.get(architecture):
        with pytest.raises(LoadError, match=why):
            load(Task.CLASSIFICATION, source, weights=str(tmp_path / "w.pth"), labels=CLASSES, **more)
        return
    engine = load(Task.CLASSIFICATION, source, weights=str(tmp_path / "w.pth"), labels=CLASSES, **more)
    (tmp_path / "w.pth").unlink()  # up to 500 MB
    for picture in (PICTURES[0], PICTURES[-1]):
        (answer,) = engine.predict([picture], [GOLD])
        with torch.inference_mode():
            wanted = model(engine.preprocess(picture)[None]).softmax(1)[0].tolist()
        assert dict(answer) == pytest.approx(dict(zip(CLASSES, wanted, strict=True)), abs=1e-5)
    check_levels_of_labels(engine, PICTURES[: FEW.get(architecture, 24)])


@pytest.mark.parametrize("architecture", every(TORCHVISION_SEGMENTERS, torchvision.models.segmentation))
def test_a_segmenter_of_torchvision_is_its_model(architecture: str, tmp_path: Path) -> None:
    only = {} if architecture.startswith("lraspp") else {"aux_loss": True}
    model = built(architecture, tmp_path, SIDE, weights_backbone=None, **only)
    source = f"torchvision:{architecture}"
    engine = load(
        Task.SEGMENTATION, source, weights=str(tmp_path / "w.pth"), labels=CLASSES, input_size=SIDE, max_batch_size=4
    )
    picture = PICTURES[0]
    (answer,) = engine.predict([picture], [GOLD])
    with torch.inference_mode():
        wanted = model(engine.preprocess(picture)[None])["out"]
    full = F.interpolate(wanted, (picture.height, picture.width), mode="bilinear", align_corners=False)[0].argmax(0)
    assert (class_map(answer) == full.numpy()).mean() > 0.999
    check_levels_of_masks(engine, PICTURES[:8])
