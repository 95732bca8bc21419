"""Whether a file's weights are all of a model's and no others: what transformers would make up is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from deployments.engines.errors import LoadError

_NO_WEIGHTS = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias|\.attention\.(masked_)?bias)$")
"""Buffers that older versions saved, and which a model computes itself."""
_HINTS = {
    r"\.lora_|\.base_layer\.": "it is an adapter that was not merged: merge it with peft's merge_and_unload",
    r"(weight_scale|weight_packed|qweight|qzeros|absmax|weight_scale_inv|_scale)$": "its weights are quantised in"
    " a way that its config.json does not tell in quantization_config, or that transformers does not know",
}
_SHOWN = 3


def check_weights(what: str, model: nn.Module, info: Mapping[str, Any]) -> None:
    """Refuse a model that got other weights than its own, from what `from_pretrained` tells with output_loading_info.

    Tied weights are not missing, and a head for another task beside the model (a reward's, a vision tower) is left out.

    Args:
        what: the model's id and source, which the message begins with.
        info: `missing_keys`, `unexpected_keys` and `mismatched_keys`.

    Raises:
        LoadError: weights of the model are not in the file, or have another shape, or the file has weights of the
            model's own layers that it has no place for.
    """
    found = {
        "lacks": sorted(info["missing_keys"], key=_in_order),
        "has in another shape": [
            f"{name} {tuple(theirs)} instead of {tuple(ours)}" for name, theirs, ours in sorted(info["mismatched_keys"])
        ],
        "has, and the model has no place for,": sorted(_of_own_layers(model, info["unexpected_keys"]), key=_in_order),
    }
    if not any(found.values()):
        return
    said = "; ".join(f"{verb} {_some(names)}" for verb, names in found.items() if names)
    every = [*info["missing_keys"], *info["unexpected_keys"]]
    hint = next((hint for form, hint in _HINTS.items() if any(re.search(form, name) for name in every)), None)
    raise LoadError(
        f"{what}: its file {said}; {hint or f'it is not of the {type(model).__name__} that its config.json describes'}"
    )


def _of_own_layers(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Names below a part that the model has; others are of something beside it."""
    own = {name for name, _ in model.named_children()}
    return [name for name in names if name.split(".")[0] in own and not _NO_WEIGHTS.search(name)]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _in_order(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
