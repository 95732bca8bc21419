"""The attention of models that torch's own product cannot compute: each model's own eager one, on paged caches too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

PAGED_EAGER = "paged|eager"
"""What continuous batching makes of eager attention."""


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
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if paged:
            model.set_attn_implementation(PAGED_EAGER)
