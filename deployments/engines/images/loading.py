"""Vision models from where they lie: torchvision architectures, transformers folders and hub ids, state-dict files."""

from __future__ import annotations

import difflib
import hashlib
import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from deployments.config import ModelSpec, resolve_path
from deployments.engines.errors import LoadError, first_line
from deployments.engines.images.decoding import shrink

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TORCHVISION = "torchvision:"
_FILE_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".safetensors")
_PROCESSOR_FIELDS = (
    "do_resize size resample do_center_crop crop_size do_rescale rescale_factor do_normalize image_mean image_std"
).split()


@dataclass(frozen=True)
class LoadedModel:
    """A vision model as its library gave it: float32, on the CPU, in evaluation mode.

    Attributes:
        run: pixels [B, 3, h, w] to logits [B, K] or [B, K, h', w'].
        preprocess: an RGB picture to pixels [3, h, w] float32.
        classes: K names.
        preprocessing: what `preprocess` does, as text for the fingerprint.
    """

    model: nn.Module
    run: Callable[[Tensor], Tensor]
    preprocess: Callable[[Image.Image], Tensor]
    classes: tuple[str, ...]
    preprocessing: str

    def weights_digest(self) -> str:
        """SHA-256 hex over all weights and buffers by name: the same in every process and on every machine."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
            digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_torchvision(spec: ModelSpec) -> LoadedModel | None:
    """Load `torchvision:<architecture>`, or a folder whose config.json names one; None where the source is neither.

    Raises:
        LoadError: an unknown architecture or weights, no connection, or a state dict that does not fit.
    """
    if spec.source.startswith(_TORCHVISION):
        architecture = spec.source.removeprefix(_TORCHVISION)
        if spec.weights is None:
            raise LoadError(f"{spec.id}: set weights, to an enum such as IMAGENET1K_V1 or to a state-dict file")
        if resolve_path(spec.weights).is_file() or spec.weights.endswith(_FILE_SUFFIXES):
            return _from_state_dict(spec, architecture, resolve_path(spec.weights))
        return _from_weights_enum(spec, architecture, spec.weights)
    folder = resolve_path(spec.source)
    config = _read_json(folder / "config.json")
    if not str(config.get("architecture", "")).startswith(_TORCHVISION):
        return None
    filled = spec.model_copy(
        update={
            "labels": spec.labels or tuple(config["classes"]),
            "input_size": spec.input_size or config["input_size"],
        }
    )
    architecture = config["architecture"].removeprefix(_TORCHVISION)
    return _from_state_dict(filled, architecture, folder / "model.safetensors", config["mean"], config["std"])


def load_transformers(spec: ModelSpec, auto_class: Any) -> LoadedModel:
    """Load a folder or hub id with one of transformers' AutoModel classes and its own image processor.

    Raises:
        LoadError: not found, of another task, or with weights missing.
    """
    from transformers import AutoImageProcessor  # imports for seconds, which a torchvision model need not pay

    folder = resolve_path(spec.source)
    source = str(folder) if folder.is_dir() else spec.source
    try:
        model, info = auto_class.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise LoadError(f"{spec.id}: cannot load '{spec.source}', as folder or hub id: {first_line(error)}") from error
    if info["missing_keys"]:
        raise LoadError(f"{spec.id}: '{spec.source}' lacks weights of this task, such as {_some(info['missing_keys'])}")
    names = tuple(str(model.config.id2label[k]) for k in range(model.config.num_labels))
    fields = processor.to_dict()
    height, width = _target_size(fields)

    def preprocess(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(images=shrink(image, height, width), return_tensors="pt")["pixel_values"][0]
        return pixels

    return LoadedModel(
        model=model.eval(),
        run=lambda pixels: model(pixel_values=pixels).logits,
        preprocess=preprocess,
        classes=_checked_labels(spec, spec.labels or names, len(names)),
        preprocessing=json.dumps({k: fields.get(k) for k in _PROCESSOR_FIELDS}, sort_keys=True, default=str),
    )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors or a torch file, without pickled code, wrappers and `module.` prefixes removed.

    Raises:
        LoadError: missing or unreadable.
    """
    if not path.is_file():
        raise LoadError(f"{path} does not exist")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise LoadError(f"{path} cannot be read as a state dict: {first_line(error)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise LoadError(f"{path} does not hold a state dict (names to tensors)")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _from_state_dict(
    spec: ModelSpec,
    architecture: str,
    path: Path,
    mean: Iterable[float] = IMAGENET_MEAN,
    std: Iterable[float] = IMAGENET_STD,
) -> LoadedModel:
    if not spec.labels or not spec.input_size:
        raise LoadError(f"{spec.id}: a state dict says neither its classes nor its input; set labels and input_size")
    model = _build(spec, architecture, num_classes=len(spec.labels))
    _fit(spec, architecture, model, read_state_dict(path))
    preprocess = _SquareResize(spec.input_size, tuple(mean), tuple(std))
    return LoadedModel(model, model, preprocess, _checked_labels(spec, spec.labels, len(spec.labels)), repr(preprocess))


def _from_weights_enum(spec: ModelSpec, architecture: str, name: str) -> LoadedModel:
    model = _build(spec, architecture)
    enum = torchvision.models.get_model_weights(architecture)
    short = name.rpartition(".")[2]
    if short not in enum.__members__:
        raise LoadError(f"{spec.id}: {architecture} has no weights '{name}'; it has {', '.join(enum.__members__)}")
    weights = enum[short]
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise LoadError(
            f"{spec.id}: cannot download {weights.url}: {first_line(error)}; or name a state-dict file in weights"
        ) from error
    model.load_state_dict(state)
    categories = tuple(weights.meta["categories"])
    labels = _checked_labels(spec, spec.labels or categories, len(categories))
    transform = weights.transforms()
    return LoadedModel(model, model, transform, labels, repr(transform))


def _build(spec: ModelSpec, architecture: str, **arguments: Any) -> nn.Module:
    known = torchvision.models.list_models(torchvision.models)
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known) or ["resnet50"]
        raise LoadError(f"{spec.id}: torchvision has no classifier '{architecture}'; did you mean {', '.join(near)}?")
    model: nn.Module = torchvision.models.get_model(architecture, weights=None, **arguments)
    return model.eval()


def _fit(spec: ModelSpec, architecture: str, model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state dict strictly; where it does not fit, name the first keys that do not."""
    own = model.state_dict()
    found = {
        "missing": [name for name in own if name not in state and not name.endswith("num_batches_tracked")],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
            for name, value in state.items()
            if name in own and value.shape != own[name].shape
        ],
    }
    if any(found.values()):
        said = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in found.items() if names)
        raise LoadError(f"{spec.id}: {spec.weights or spec.source} is not a {architecture}; {said}")
    model.load_state_dict({**own, **state})


@dataclass(frozen=True)
class _SquareResize:
    """Resize to a square, bilinear with antialiasing, and normalise: [3, size, size] float32."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = pil_to_tensor(shrink(image, self.size, self.size))[None].float()
        resized = F.interpolate(pixels, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return (resized[0] / 255 - mean) / std


def _target_size(fields: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width that a processor resizes to, as far as it says; its longest side where it does not."""
    size = fields.get("size") or {}
    longest = max([int(v) for v in size.values() if v] or [4096])
    return int(size.get("height") or longest), int(size.get("width") or longest)


def _checked_labels(spec: ModelSpec, labels: tuple[str, ...], classes: int) -> tuple[str, ...]:
    if len(labels) != classes:
        raise LoadError(f"{spec.id}: {len(labels)} labels for a model of {classes} classes")
    return labels


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read: {first_line(error)}") from error
    return value if isinstance(value, dict) else {}


def _some(names: Iterable[str]) -> str:
    chosen = sorted(names)[:3] if isinstance(names, set | frozenset) else list(names)[:3]
    return ", ".join(map(str, chosen))
