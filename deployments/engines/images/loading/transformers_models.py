"""transformers' image classifiers and semantic segmenters, from a folder or the hub, with their own processor."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from deployments.config import ModelSpec, Task, resolve_path
from deployments.engines.checkpoints import UNWRAPPED, check_files
from deployments.engines.errors import LoadError, first_line
from deployments.engines.images.loading.loaded import LoadedModel, checked_labels, described, some
from policies.head.final import logits_of

_NOT_BEHAVIOUR = {
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "torch_dtype", "transformers_version",
}  # fmt: skip
"""Of a configuration: what changes no logit, or is told by weights and classes."""


def load_transformers(spec: ModelSpec) -> LoadedModel:
    """Load a folder or hub id with transformers' AutoModel class of the task and its own image processor.

    Raises:
        LoadError: not found, half there, of another task, with weights missing, or answering something else than one
            choice among classes.
    """
    model, processor = _opened(spec)
    config = model.config
    if spec.task is Task.CLASSIFICATION:
        _refuse_independent_scores(spec, config)
    _check_inputs(spec, model, processor)

    def preprocess(image: Image.Image | Tensor) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    settings = {name: value for name, value in config.to_diff_dict().items() if name not in _NOT_BEHAVIOUR}
    return LoadedModel(
        model=model,
        run=lambda pixels: logits_of(model(pixel_values=pixels)),
        preprocess=preprocess,
        resizing=preprocess,
        classes=_classes(spec, config),
        described=described(
            model={"name": type(model).__name__, **settings},
            preprocessing={"kind": type(processor).__name__, **processor.to_dict()},
        ),
    )


def _opened(spec: ModelSpec) -> tuple[Any, Any]:
    # They import for seconds, which a torchvision model need not pay.
    from transformers import (
        AutoImageProcessor,
        AutoModelForImageClassification,
        AutoModelForSemanticSegmentation,
        PreTrainedConfig,
    )

    classifies = spec.task is Task.CLASSIFICATION
    auto_class: Any = AutoModelForImageClassification if classifies else AutoModelForSemanticSegmentation
    folder = resolve_path(spec.source)
    if folder.is_dir():
        check_files(folder)
    source = str(folder) if folder.is_dir() else spec.source
    named = {"id2label": dict(enumerate(spec.labels))} if spec.labels else {}
    try:
        _check_id2label(spec, PreTrainedConfig.get_config_dict(source)[0].get("id2label"))
        model, info = auto_class.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, key_mapping=UNWRAPPED, **named
        )
        processor = AutoImageProcessor.from_pretrained(source)
    except LoadError:
        raise
    except ImportError as error:
        raise LoadError(f"{spec.id}: '{spec.source}' needs another package: {_package(error)}") from error
    except Exception as error:  # a library's own on a strange config.json: KeyError, TypeError, AttributeError and more
        raise LoadError(
            f"{spec.id}: cannot load '{spec.source}', as folder or hub id: {_reason(spec, error)}"
        ) from error
    if info["missing_keys"]:
        raise LoadError(f"{spec.id}: '{spec.source}' lacks weights of this task, such as {some(info['missing_keys'])}")
    if more := _further_layers(model, info["unexpected_keys"]):
        raise LoadError(
            f"{spec.id}: '{spec.source}' has more layers than its config.json says, such as {some(more)}; take both"
            " from one model"
        )
    return model.eval(), processor


def _further_layers(model: nn.Module, unexpected: Iterable[str]) -> list[str]:
    """Names in a file, of which the model has the like by another number. Others are of a head for another task."""
    own = {re.sub(r"\d+", "#", name) for name in model.state_dict()}
    return sorted(name for name in unexpected if re.sub(r"\d+", "#", name) in own)


def _package(error: ImportError) -> str:
    """What to install: an extra of ours, or what the library says."""
    if "timm" in str(error):
        return "pip install 'aim-serve[timm]'"
    return first_line(error)


def _reason(spec: ModelSpec, error: Exception) -> str:
    """What a library's error means, and what to do."""
    if "for this kind of AutoModel" in str(error):
        kind = "an image classifier" if spec.task is Task.CLASSIFICATION else "a segmenter with logits for each pixel"
        return f"its model_type in config.json is not that of {kind}"
    if "ignore_mismatched_sizes" in str(error):
        return (
            "its weights have other shapes than its config.json says; if it is the number of classes, name them all in"
            " id2label there, or in labels"
        )
    if "image processor" in str(error):
        return "its preprocessor_config.json is missing or no image processor's; copy it from the model's first author"
    return first_line(error)


def _check_id2label(spec: ModelSpec, names: Any) -> None:
    if names is None or (isinstance(names, dict) and all(str(key).isdecimal() for key in names)):
        return
    raise LoadError(f'{spec.id}: id2label in config.json must map numbers to names, such as {{"0": "cat", "1": "dog"}}')


def _refuse_independent_scores(spec: ModelSpec, config: Any) -> None:
    """A level is the share of answers that stay, and the answer is the class with the highest score."""
    kind = config.problem_type
    if kind in ("multi_label_classification", "regression"):
        what = "scores each class by itself, with a sigmoid" if kind.startswith("multi") else "answers numbers"
        raise LoadError(
            f"{spec.id}: '{spec.source}' {what} (problem_type {kind} in its config.json); levels are of a choice among"
            " classes: only single_label_classification is served"
        )


def _classes(spec: ModelSpec, config: Any) -> tuple[str, ...]:
    """The classes' names in the order of the logits.

    Raises:
        LoadError: config.json's id2label has gaps, or there is one logit alone.
    """
    names = config.id2label
    count = len(names)
    if spec.labels:
        return checked_labels(spec, spec.labels, count)
    if sorted(names) != list(range(count)):
        raise LoadError(
            f"{spec.id}: id2label in config.json names {count} classes as {some(map(str, sorted(names)))}, but"
            f" logits are numbered 0 to {count - 1}; set labels to all names in the order of the logits"
        )
    return checked_labels(spec, tuple(str(names[index]) for index in range(count)), count)


def _check_inputs(spec: ModelSpec, model: Any, processor: Any) -> None:
    """Pixels are all that a model is given: refuse one that takes more, or something else."""
    try:
        given = processor(images=Image.new("RGB", (64, 64), "grey"), return_tensors="pt")
        taken = inspect.signature(model.forward).parameters
        more = [name for name in given if name != "pixel_values" and name in taken]
    except Exception as error:
        raise LoadError(f"{spec.id}: the image processor of '{spec.source}' fails: {first_line(error)}") from error
    if more or "pixel_values" not in given:
        raise LoadError(
            f"{spec.id}: {type(model).__name__} cannot be served: it takes {some(more or list(given))}, and pixels"
            " alone are given"
        )
