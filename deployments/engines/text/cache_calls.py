"""A paged cache for models that call their cache as was usual before continuous batching: GPT-NeoX, OPT, StableLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

OLDER = frozenset(("biogpt", "bloom", "gpt_neox", "nemotron", "opt", "stablelm"))
"""Model types that call so and ask nothing else of a cache: their answers are `generate`'s, as tests/ shows of each."""


def take_older_calls(cache: Any, model: PreTrainedModel) -> None:
    """Have a paged cache answer calls that leave out what it needs of a step, which it then takes from the step itself.

    Args:
        cache: of transformers' continuous batching, before its first step.
        model: whose forward is told of each step; one that is not of `OLDER` is left as it is.
    """
    if model.config.model_type not in OLDER:
        return
    step: dict[str, Any] = {}

    def note(_model: nn.Module, _inputs: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        if "read_index" in given:
            step.clear()
            step.update(given)

    update = cache.update

    def with_step(
        keys: Tensor, values: Tensor, layer: int, given: dict[str, Any] | None = None, **more: Any
    ) -> tuple[Tensor, Tensor]:
        given = more.get("kwargs", given)
        whole = given if given is not None and "read_index" in given else dict(step)
        out: tuple[Tensor, Tensor] = update(keys, values, layer, whole)
        return out

    model.register_forward_pre_hook(note, with_kwargs=True)
    cache.update = with_step
    cache.get_seq_length = lambda *_, **__: 0
