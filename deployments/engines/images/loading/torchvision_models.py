"""torchvision's models: with published weights as torchvision builds them, or with a state dict of one's own."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models.segmentation.lraspp import LRASPPHead
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from deployments.config import ModelSpec, Task, resolve_path
from deployments.engines.checkpoints import check_file
from deployments.engines.errors import LoadError, first_line
from deployments.engines.images.decoding import shrink
from deployments.engines.images.loading.loaded import LoadedModel, checked_labels, described
from deployments.engines.images.loading.state_dicts import Checkpoint

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCHVISION = "torchvision:"
_FILE_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar", ".safetensors")
_MODELS = {Task.CLASSIFICATION: torchvision.models, Task.SEGMENTATION: torchvision.models.segmentation}
_TRANSFORMS_INPUT = ("inception_v3", "googlenet")
"""Built from published weights they normalise their input once more, and so does what is fine-tuned from them."""
_REFERENCE = ("val_resize_size", "val_crop_size", "interpolation")
"""What torchvision's reference training notes of its preprocessing."""
_AUXILIARY = {"inception_v3": "AuxLogits", "googlenet": "aux1"}


def load_torchvision(spec: ModelSpec) -> LoadedModel | None:
    """Load `torchvision:<architecture>`, or a folder whose config.json names one; None where the source is neither.

    Raises:
        LoadError: an unknown architecture or weights, no connection, or a state dict that does not fit.
    """
    if spec.source.startswith(TORCHVISION):
        architecture = _known(spec, spec.source.removeprefix(TORCHVISION))
        if spec.weights is None:
            raise LoadError(f"{spec.id}: set weights, to an enum such as IMAGENET1K_V1 or to a state-dict file")
        if resolve_path(spec.weights).is_file() or spec.weights.endswith(_FILE_SUFFIXES):
            return _from_file(spec, architecture, resolve_path(spec.weights))
        return _from_weights_enum(spec, architecture, spec.weights)
    folder = resolve_path(spec.source)
    config = _read_config(folder / "config.json")
    if not str(config.get("architecture", "")).startswith(TORCHVISION):
        return None
    architecture = _known(spec, config["architecture"].removeprefix(TORCHVISION))
    labels = spec.labels or tuple(config["classes"])
    preprocess = _SquareResize(spec.input_size or config["input_size"], tuple(config["mean"]), tuple(config["std"]))
    checkpoint = Checkpoint.read(folder / "model.safetensors")
    return _loaded(spec, architecture, _filled(spec, architecture, checkpoint, len(labels)), preprocess, labels)


def _from_weights_enum(spec: ModelSpec, architecture: str, name: str) -> LoadedModel:
    enum = torchvision.models.get_model_weights(architecture)
    short = name.rpartition(".")[2]
    if short not in enum.__members__:
        raise LoadError(f"{spec.id}: {architecture} has no weights '{name}'; it has {', '.join(enum.__members__)}")
    if spec.transforms or spec.arguments or spec.input_size:
        raise LoadError(
            f"{spec.id}: published weights bring their own preprocessing; leave out transforms, input_size and"
            " arguments"
        )
    weights = enum[short]
    try:
        model: nn.Module = torchvision.models.get_model(architecture, weights=weights, progress=False)
    except (OSError, RuntimeError) as error:
        raise LoadError(
            f"{spec.id}: cannot load {weights.url}: {first_line(error)}; or name a state-dict file in weights"
        ) from error
    categories = tuple(weights.meta["categories"])
    labels = checked_labels(spec, spec.labels or categories, len(categories))
    return _loaded(spec, architecture, model, weights.transforms(), labels)


def _from_file(spec: ModelSpec, architecture: str, path: Path) -> LoadedModel:
    if not spec.labels:
        raise LoadError(f"{spec.id}: a state dict does not name its classes; set labels, in the order of the logits")
    checkpoint = Checkpoint.read(path)
    preprocess = _own_preprocessing(spec, checkpoint.args)
    return _loaded(
        spec, architecture, _filled(spec, architecture, checkpoint, len(spec.labels)), preprocess, spec.labels
    )


def _loaded(
    spec: ModelSpec, architecture: str, model: nn.Module, preprocess: Any, labels: tuple[str, ...]
) -> LoadedModel:
    if getattr(model, "aux_classifier", None) is not None:
        model.aux_classifier = None  # type: ignore[assignment]  # it serves training alone
    if isinstance(getattr(model, "classifier", None), LRASPPHead):
        model.classifier = _JoinedHead(model.classifier)
    model.eval()
    run = (lambda pixels: model(pixels)["out"]) if spec.task is Task.SEGMENTATION else model
    built = {"name": architecture, "transform_input": getattr(model, "transform_input", False), **spec.arguments}
    return LoadedModel(
        model=model,
        run=run,
        preprocess=preprocess,
        resizing=preprocess,
        classes=checked_labels(spec, labels, len(labels)),
        described=described(model=built, preprocessing={"kind": type(preprocess).__name__, **_settings(preprocess)}),
    )


def _known(spec: ModelSpec, architecture: str) -> str:
    """An architecture of the task.

    Raises:
        LoadError: torchvision has none of that name.
    """
    known = torchvision.models.list_models(_MODELS[spec.task])
    if architecture not in known:
        kind = "classifier" if spec.task is Task.CLASSIFICATION else "semantic segmenter"
        near = difflib.get_close_matches(architecture, known) or known[-1:]
        raise LoadError(f"{spec.id}: torchvision has no {kind} '{architecture}'; did you mean {', '.join(near)}?")
    return architecture


def _filled(spec: ModelSpec, architecture: str, checkpoint: Checkpoint, classes: int) -> nn.Module:
    """An architecture with a file's weights, with auxiliary heads where the file has them."""
    arguments = {"num_classes": classes, **spec.arguments}
    if spec.task is Task.SEGMENTATION:
        arguments |= {"weights_backbone": None}
        if not architecture.startswith("lraspp"):
            arguments |= {"aux_loss": checkpoint.names("aux_classifier")}
    if architecture in _TRANSFORMS_INPUT:
        arguments |= {"aux_logits": checkpoint.names(_AUXILIARY[architecture]), "init_weights": False}
        if "transform_input" not in spec.arguments:
            arguments |= {"transform_input": _fine_tuned(spec, architecture, checkpoint)}
    try:
        model: nn.Module = torchvision.models.get_model(architecture, weights=None, **arguments)
    except (TypeError, ValueError) as error:
        raise LoadError(f"{spec.id}: arguments do not fit {architecture}: {first_line(error)}") from error
    checkpoint.load_into(model, f"{architecture} of {classes} classes")
    return model


def _fine_tuned(spec: ModelSpec, architecture: str, checkpoint: Checkpoint) -> bool:
    """Whether an inception was fine-tuned from published weights, as torchvision's reference training notes."""
    if "weights" not in checkpoint.args:
        raise LoadError(
            f"{spec.id}: a file does not say how {architecture} normalises its input; set arguments to"
            " {transform_input: true} where it was fine-tuned from published weights, else to {transform_input: false}"
        )
    return bool(checkpoint.args["weights"])


def _own_preprocessing(spec: ModelSpec, args: Mapping[str, Any]) -> Any:
    """What is done to a picture before a model with one's own state dict: as the specification or the file says."""
    if spec.transforms and spec.input_size:
        raise LoadError(f"{spec.id}: transforms says the input's size; leave input_size out")
    if spec.input_size:
        return _SquareResize(spec.input_size, IMAGENET_MEAN, IMAGENET_STD)
    if isinstance(spec.transforms, dict):
        return _preset(spec, spec.transforms)
    if spec.transforms:
        try:
            return torchvision.models.get_weight(spec.transforms).transforms()
        except (ValueError, KeyError, AttributeError) as error:
            raise LoadError(
                f"{spec.id}: torchvision has no weights '{spec.transforms}'; transforms is a name such as"
                " ResNet50_Weights.IMAGENET1K_V2"
            ) from error
    noted = {name.removeprefix("val_"): args.get(name) for name in _REFERENCE}
    if all(noted.values()) and str(args.get("backend", "pil")).lower() == "pil":
        return _preset(spec, noted)
    raise LoadError(
        f"{spec.id}: a state dict does not say what is done to a picture first; set transforms to the weights whose"
        " preprocessing it was trained with, such as ResNet50_Weights.IMAGENET1K_V2, or input_size, to squash pictures"
        " to a square"
    )


def _preset(spec: ModelSpec, settings: Mapping[str, Any]) -> Any:
    """torchvision's own preprocessing of a task, by its settings."""
    weights: Any = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    if spec.task is Task.SEGMENTATION:
        weights = torchvision.models.segmentation.FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1
    kind = type(weights.transforms())
    try:
        interpolation = InterpolationMode(settings.get("interpolation", "bilinear"))
        preset = kind(**{**settings, "interpolation": interpolation})
        preset(Image.new("RGB", (64, 64)))
    except (TypeError, ValueError, RuntimeError) as error:
        raise LoadError(
            f"{spec.id}: transforms does not fit torchvision's {kind.__name__}: {first_line(error)}"
        ) from error
    return preset


def _settings(preprocess: Any) -> dict[str, Any]:
    """All that a preset does, which its repr leaves out in part."""
    return {name: value for name, value in vars(preprocess).items() if not name.startswith("_") and name != "training"}


@dataclass(frozen=True)
class _SquareResize:
    """Resize to a square, bilinear with antialiasing, and normalise: [3, size, size] float32."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        if isinstance(image, Image.Image):
            image = transforms.pil_to_tensor(shrink(image, self.size, self.size))
        assert isinstance(image, Tensor)
        pixels = image[None].float()
        resized = F.interpolate(pixels, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return (resized[0] / 255 - mean) / std


class _JoinedHead(nn.Module):
    """LR-ASPP's head with its two last layers, which it adds up, as one over both inputs: that can be modulated."""

    def __init__(self, head: LRASPPHead) -> None:
        super().__init__()
        self.cbr, self.scale = head.cbr, head.scale
        low, high = head.low_classifier, head.high_classifier
        self.classifier = nn.Conv2d(low.in_channels + high.in_channels, low.out_channels, 1)
        with torch.no_grad():
            self.classifier.weight.copy_(torch.cat([low.weight, high.weight], dim=1))
            self.classifier.bias = nn.Parameter(low.bias + high.bias)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Features of two resolutions to logits [B, K, h, w] at the finer one."""
        low, high = features["low"], features["high"]
        gated = self.cbr(high) * self.scale(high)
        gated = F.interpolate(gated, low.shape[-2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.classifier(torch.cat([low, gated], dim=1))
        return logits


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    check_file(path)
    value = json.loads(path.read_text())
    return value if isinstance(value, dict) else {}
