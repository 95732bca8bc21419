"""The attention of models that torch's own product cannot compute: each model's own, on paged caches too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

PAGED_EAGER = "paged|eager"
"""What continuous batching makes of eager attention."""
ALIBI = frozenset(("bloom",))
"""Model types whose attention is biased by positions that they take from a mask of rows."""


def own_eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """A layer's attention by its model's own function.

    Transformers' own form for paged caches leaves out what some models do besides, such as Gemma 2's soft capping.

    Args:
        query, key, value: [1, heads, q or k, width]; keys and values as the cache gives them, past ones included.
        attention_mask: [1, 1, q, k], added to the scores.

    Raises:
        AttributeError: the model has no such function; the first request fails, and the model is refused.
    """
    forward = sys.modules[type(module).__module__].eager_attention_forward
    out: tuple[Tensor, Tensor | None] = forward(module, query, key, value, attention_mask, **options)
    return out


AttentionInterface.register(PAGED_EAGER, own_eager)


@contextmanager
def alone(model: PreTrainedModel) -> Iterator[None]:
    """For as long as this is open, a model whose engine is idle attends as it would without an engine."""
    paged = model.config._attn_implementation == PAGED_EAGER
    if paged:
        _attend(model, "eager")
    try:
        yield
    finally:
        if paged:
            _attend(model, PAGED_EAGER)


def ready(model: PreTrainedModel) -> None:
    """Have a model of `ALIBI` attend to several sequences in one row, each at its own positions."""
    if model.config.model_type not in ALIBI:
        return
    _attend(model, PAGED_EAGER)  # so that it is given a mask
    base: Any = model.base_model
    of_rows = base.build_alibi_tensor

    def build(mask: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
        if mask.dim() == 2:  # without an engine
            return of_rows(mask, heads, dtype)  # type: ignore[no-any-return]
        keys = torch.arange(mask.shape[-1], device=mask.device)
        first = (mask[0, 0] == 0).int().argmax(dim=-1)
        # Of one sequence as long as all keys the library's biases are a slope a head times the key's position.
        slopes = of_rows(torch.ones(1, 2, device=mask.device), heads, torch.float32)[:, :, 1:]
        biases: Tensor = (slopes * (keys - first[:, None])).to(dtype)
        return biases

    base.build_alibi_tensor = build


def _attend(model: PreTrainedModel, how: str) -> None:
    model.set_attn_implementation(how)
    # It leaves a model as it is whose attention is not transformers' common one; masks go by the configuration.
    model.config._attn_implementation = how
