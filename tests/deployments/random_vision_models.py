"""Models of random weights that tell pictures apart, and what a level and a focus must do to their answers."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from deployments.config import ModelSpec, Task
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.engine import VisionEngine
from deployments.engines.images.segmenter import ImageSegmenter
from policies.calibration.calibration import Calibration
from policies.field.variance import MAX_VARIANCE, MIN_VARIANCE, POSITIONS
from policies.head.final import find_final
from policies.terms import Modulation
from tests.deployments.vision_families import CLASSES, SIDE
from tests.deployments.vision_support import GOLD, SECRET, at, scenes

PICTURES = [*scenes(40, 90, 60), *scenes(8, 50, 70, seed=1)]


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
