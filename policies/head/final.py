"""Which module of a model makes its logits: found by running it, not by its name.

A layer is the final one if turning its classes round turns the logits' round and nothing else, and if what comes after
it keeps the order of a row's logits: nothing, a scale, a softcap, or for maps a bilinear interpolation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.head.attachment import layer_shape

_CLOSE = 1e-3
"""Share of the logits' range by which what should be equal may differ: bfloat16 and other kernels round."""


class NoFinalLayer(ValueError):
    """No one layer makes a model's logits; the message names the model and what stands in the way."""


@dataclass(frozen=True)
class Final:
    """A model's final layer.

    Attributes:
        name: its dotted name in the model; empty where it is the model.
        module: `nn.Linear`, or a 1x1 `nn.Conv2d`.
        maps: whether the logits are maps [B, K, h, w].
        align_corners: of the bilinear interpolation that the model does after it; None: it does none.
    """

    name: str
    module: nn.Module
    maps: bool = False
    align_corners: bool | None = None


def find_final(model: nn.Module, run: Callable[[], Any]) -> Final:
    """The layer at which a model's logits are modulated.

    Args:
        run: calls the model, or its `generate`, on any input and returns what it answers: logits [B, K], [B, T, K] or
            [B, K, h, w], alone or as `logits_of` finds them. It is called two or three times, in evaluation mode.

    Raises:
        NoFinalLayer: no `nn.Linear` or 1x1 `nn.Conv2d` makes the logits, or more is done to its output.
    """
    with evaluating(model), torch.no_grad():
        seen, logits = _outputs(model, run)
        parts: list[str] = []
        for name, (module, output) in reversed(seen.items()):
            turned = _turned(module, run)
            if _same(turned, logits):
                continue  # it has no part in the logits, as an auxiliary head has none
            parts.append(name)
            if not _same(turned, logits.roll(1, _class_dim(logits))):
                continue
            ways = [way for way in (None, False, True) if _keeps_order(_read(output, logits, way), logits)]
            if ways:
                nearest = min(ways, key=lambda way: _apart(_read(output, logits, way), logits))
                return Final(name, module, logits.ndim == 4, nearest)
    raise NoFinalLayer(f"{type(model).__name__} cannot be modulated: {_reason(parts, logits)}")


def logits_of(answer: Any) -> Tensor:
    """A model's logits in what it answers: a tensor, transformers' outputs, or torchvision's dictionaries of maps.

    Raises:
        NoFinalLayer: there are none.
    """
    if isinstance(answer, Tensor):
        return answer
    logits = getattr(answer, "logits", None)
    if logits is None and isinstance(answer, Mapping):
        logits = answer.get("out", answer.get("logits"))
    if logits is None and isinstance(answer, tuple | list) and answer:
        logits = answer[0]
    if isinstance(logits, tuple | list) and logits:  # of `generate`: one a step
        logits = logits[0]
    if not isinstance(logits, Tensor):
        raise NoFinalLayer(f"the model answers no logits, but {type(answer).__name__}")
    return logits


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode, each of its modules put back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _outputs(model: nn.Module, run: Callable[[], Any]) -> tuple[dict[str, tuple[nn.Module, Tensor]], Tensor]:
    """What each layer that could be the final one answered last, in the order of their calls, and the logits."""
    seen: dict[str, tuple[nn.Module, Tensor]] = {}

    def remember(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen.pop(name, None)
            seen[name] = module, output.detach().clone()

        return hook

    hooks = [
        module.register_forward_hook(remember(name)) for name, module in model.named_modules() if _attachable(module)
    ]
    try:
        logits = logits_of(run())
    finally:
        for hook in hooks:
            hook.remove()
    classes = logits.shape[_class_dim(logits)] if logits.ndim > 1 else 0
    return {name: found for name, found in seen.items() if layer_shape(found[0])[1] == classes > 1}, logits


def _attachable(module: nn.Module) -> bool:
    try:
        layer_shape(module)
    except TypeError:
        return False
    return True


def _turned(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """The model's logits where a layer answers each class with its neighbour's output."""
    dim = -3 if isinstance(module, nn.Conv2d) else -1
    hook = module.register_forward_hook(lambda _module, _inputs, output: output.roll(1, dim))
    try:
        return logits_of(run())
    finally:
        hook.remove()


def _read(output: Tensor, logits: Tensor, align_corners: bool | None) -> Tensor:
    """A layer's output as it would be the logits, interpolated or not; empty where it cannot be."""
    if align_corners is not None:
        if not output.ndim == logits.ndim == 4 or output.shape == logits.shape:
            return output.new_zeros(0)
        return F.interpolate(output.float(), logits.shape[2:], mode="bilinear", align_corners=align_corners)
    if output.ndim == 3 and logits.ndim == 2:
        output = output[:, -1]  # of a text's places `generate` takes the last
    if output.ndim == 4 and logits.ndim == 2 and output.shape[2:] == (1, 1):
        output = output.flatten(1)
    return output if output.shape == logits.shape else output.new_zeros(0)


def _keeps_order(output: Tensor, logits: Tensor) -> bool:
    """Whether every row of the logits is highest where the output is."""
    if output.shape != logits.shape:
        return False
    dim = _class_dim(logits)
    # The other way round as well: of what a softcap or bfloat16 has made equal, either is the highest.
    for one, other in ((output.float(), logits.float()), (logits.float(), output.float())):
        short = other.amax(dim, keepdim=True) - other.gather(dim, one.argmax(dim, keepdim=True))
        if bool((short > _CLOSE * _range(other)).any()):
            return False
    return True


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one.float() - other.float()).abs() <= _CLOSE * _range(other)).all())


def _range(logits: Tensor) -> Tensor:
    finite = logits.float()[logits.isfinite()]
    return finite.max() - finite.min() if finite.numel() else logits.new_zeros(())


def _class_dim(logits: Tensor) -> int:
    return 1 if logits.ndim == 4 else -1


def _reason(parts: list[str], logits: Tensor) -> str:
    if not _range(logits):
        return "its logits are all equal: load its weights first"
    kind = "nn.Conv2d of 1x1" if logits.ndim == 4 else "nn.Linear"
    match parts:
        case []:
            shape = list(logits.shape)
            return f"its logits, of shape {shape}, are not the output of an {kind} of as many classes"
        case [name]:
            return f"more is done to the output of '{name}' than to scale, cap or bilinearly interpolate it"
    names = " and ".join(f"'{name}'" for name in reversed(parts))
    return f"its logits are put together from the outputs of {names}, and noise on one is not noise on the logits"
