"""A vision model as its library gave it, whatever the library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from deployments.config import ModelSpec
from deployments.engines.errors import LoadError


@dataclass(frozen=True)
class LoadedModel:
    """A vision model as its library gave it: float32, on the CPU, in evaluation mode.

    Attributes:
        run: pixels [B, 3, h, w] to logits [B, K] or [B, K, h', w'].
        preprocess: an RGB picture to pixels [3, h, w] float32, all that its library does to it.
        resizing: the same of a tensor [3, h, w] uint8, as far as it goes on the meta device: only its sizes are asked.
        classes: K names.
        described: architecture and preprocessing as text: what decides an answer beside weights and classes.
    """

    model: nn.Module
    run: Callable[[Tensor], Tensor]
    preprocess: Callable[[Image.Image], Tensor]
    resizing: Callable[[Tensor], Any]
    classes: tuple[str, ...]
    described: str

    def weights_digest(self) -> str:
        """SHA-256 hex over all weights and buffers by name: the same in every process and on every machine."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
            digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def described(**parts: Mapping[str, Any]) -> str:
    """Architecture and preprocessing as text that is the same in every process."""
    return json.dumps(parts, sort_keys=True, default=str)


def checked_labels(spec: ModelSpec, labels: tuple[str, ...], classes: int) -> tuple[str, ...]:
    """One name for each logit.

    Raises:
        LoadError: more or fewer, or a single one.
    """
    if classes < 2:
        raise LoadError(
            f"{spec.id}: {spec.source} answers one logit, a yes or no by a sigmoid; levels are of a choice among"
            " classes: train it with two"
        )
    if len(labels) != classes:
        raise LoadError(f"{spec.id}: {len(labels)} labels for a model of {classes} classes")
    return labels


def some(names: Iterable[str]) -> str:
    """The first three, for a line of an error."""
    chosen = sorted(names)[:3] if isinstance(names, set | frozenset) else list(names)[:3]
    return ", ".join(map(str, chosen))
