"""What a model's own library answers, asked as its documentation says: nothing here is of this project's engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import models, transforms

from deployments.config import ModelSpec, Task, resolve_path
from deployments.engines.images.loading.state_dicts import Checkpoint

Pictured = Callable[[Image.Image], Tensor]
"""A picture to probabilities [K] of classes, or to a mask [h, w] of class indices at its size."""
_TORCHVISION = "torchvision:"


def library_name(spec: ModelSpec) -> str:
    """The call that the library's own documentation gives."""
    if spec.source.startswith(_TORCHVISION):
        return "torchvision's model and " + (
            f"{spec.transforms or spec.weights}.transforms()"
            if not _noted(spec)
            else "its reference training's preset for evaluation"
        )
    return f'transformers.pipeline("{spec.task}")'


def pictured(spec: ModelSpec, device: torch.device) -> Pictured | None:
    """The library's answers to pictures; None where it has none of its own, since the source names no preprocessing."""
    if spec.source.startswith(_TORCHVISION):
        return _torchvision(spec, device)
    folder = resolve_path(spec.source)
    if (folder / "config.json").is_file() and _TORCHVISION in (folder / "config.json").read_text():
        return None
    return _transformers(spec, str(folder) if folder.is_dir() else spec.source, device)


def _noted(spec: ModelSpec) -> Mapping[str, Any]:
    """What torchvision's reference training wrote of its evaluation, beside the weights of a file."""
    path = resolve_path(str(spec.weights))
    noted = Checkpoint.read(path).args if path.is_file() and not spec.transforms else {}
    return noted if {"val_resize_size", "val_crop_size", "interpolation"} <= noted.keys() else {}


def _torchvision(spec: ModelSpec, device: torch.device) -> Pictured | None:
    name, weights = spec.source.removeprefix(_TORCHVISION), resolve_path(str(spec.weights))
    if not weights.is_file():
        published: Any = models.get_model_weights(name)[str(spec.weights).rpartition(".")[2]]
        model, prepare = models.get_model(name, weights=published, progress=False), published.transforms()
    else:
        if spec.transforms:
            prepare = models.get_weight(spec.transforms).transforms()
        elif noted := _noted(spec):
            prepare = _reference_preset(noted)
        else:
            return None
        checkpoint, arguments = Checkpoint.read(weights), dict(spec.arguments)
        if spec.task is Task.SEGMENTATION:
            arguments |= {"weights_backbone": None}
            arguments |= {"aux_loss": True} if checkpoint.names("aux_classifier") else {}
        model = models.get_model(name, weights=None, num_classes=len(spec.labels or ()), **arguments)
        checkpoint.load_into(model, name)
    model = model.eval().to(device)

    @torch.inference_mode()
    def answer(image: Image.Image) -> Tensor:
        out = model(prepare(image)[None].to(device))
        logits: Tensor = (out["out"] if isinstance(out, dict) else out).float().cpu()
        if spec.task is Task.CLASSIFICATION:
            return logits[0].softmax(dim=0)
        whole = F.interpolate(logits, (image.height, image.width), mode="bilinear", align_corners=False)
        return whole[0].argmax(dim=0)

    return answer


def _reference_preset(noted: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """ClassificationPresetEval of torchvision's references/classification, as its train.py makes it."""
    preset: Callable[[Image.Image], Tensor] = transforms.Compose([
        transforms.Resize(noted["val_resize_size"], transforms.InterpolationMode(noted["interpolation"])),
        transforms.CenterCrop(noted["val_crop_size"]),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    return preset


def _transformers(spec: ModelSpec, source: str, device: torch.device) -> Pictured:
    from transformers import pipeline

    run: Any = pipeline(str(spec.task), model=source, device=device)  # type: ignore[call-overload]
    count = int(run.model.config.num_labels)
    run.model.config.id2label = {index: str(index) for index in range(count)}  # two classes may bear one name

    def classified(image: Image.Image) -> Tensor:
        scores = torch.zeros(count)
        for one in run(image, top_k=count):
            scores[int(one["label"])] = one["score"]
        return scores

    def segmented(image: Image.Image) -> Tensor:
        mask = torch.full((image.height, image.width), -1)
        for one in run(image, subtask="semantic"):
            mask[torch.from_numpy(np.asarray(one["mask"]) > 0)] = int(one["label"])
        return mask

    return classified if spec.task is Task.CLASSIFICATION else segmented


@torch.inference_mode()
def shortfalls(
    spec: ModelSpec, where: str, gguf: str | None, device: torch.device, prompt: list[int], answer: list[int]
) -> Tensor:
    """How far each token [T] of a greedy answer is below the library's own highest logit at that step; 0: it is it.

    Args:
        where: what `AutoModelForCausalLM.from_pretrained` is called with.
        gguf: name of the GGUF file in that folder.
    """
    from transformers import AutoModelForCausalLM

    named = {"gguf_file": gguf} if gguf else {}
    model: Any = AutoModelForCausalLM.from_pretrained(where, **named, dtype=getattr(torch, spec.dtype))
    model = model.eval().to(device)
    logits = model(torch.tensor([prompt + answer], device=device)).logits[0, len(prompt) - 1 : -1].float().cpu()
    own = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    shortfall: torch.Tensor = logits.max(dim=1).values - own
    return shortfall
