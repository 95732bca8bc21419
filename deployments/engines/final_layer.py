"""Which module of a model makes its logits: found by running it, not by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deployments.engines.loading import LoadError


@torch.inference_mode()
def find_final(
    model: nn.Module, run: Callable[[Tensor], Tensor], pixels: Tensor, kind: type[nn.Module], classes: int
) -> tuple[str, nn.Module]:
    """The module whose output, untouched, is the model's logits: its dotted name and itself.

    Args:
        pixels: [1, 3, h, w], any picture.
        kind: `nn.Linear` for [B, K] logits, `nn.Conv2d` for [B, K, h, w].
        classes: K.

    Raises:
        LoadError: no such module, or something is still done to its output.
    """
    seen: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[name] = output

        return hook

    candidates = {name: module for name, module in model.named_modules() if _is_final(module, kind, classes)}
    hooks = [module.register_forward_hook(remember(name)) for name, module in candidates.items()]
    try:
        logits = run(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    for name in reversed(seen):
        if seen[name].shape == logits.shape and torch.equal(seen[name], logits):
            return name, candidates[name]
    wanted = "an nn.Linear" if kind is nn.Linear else "a 1x1 nn.Conv2d"
    raise LoadError(
        f"{type(model).__name__} cannot be modulated: its logits must be the untouched output of {wanted} with"
        f" {classes} outputs ({'found but processed further: ' + ', '.join(seen) if seen else 'none found'})"
    )


def _is_final(module: nn.Module, kind: type[nn.Module], classes: int) -> bool:
    if isinstance(module, nn.Linear):
        return kind is nn.Linear and module.out_features == classes
    if isinstance(module, nn.Conv2d):
        one = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
        return kind is nn.Conv2d and one and module.out_channels == classes
    return False
