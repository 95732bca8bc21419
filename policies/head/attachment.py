"""A head behind a model's own final layer: a child module and a forward hook, so the model stays what it was."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from policies.head.head import Head
from policies.head.modulated import Modulated

NAME = "modulation"


def attach(final: nn.Module, head: Head) -> None:
    """From now on the final layer's output is modulated, wherever the model calls it.

    Names, state dict and tied weights of the model stay as they are; copies and pickles of it bring the head along, and
    with it the key of the noise.

    Raises:
        TypeError: neither `nn.Linear` nor a 1x1 `nn.Conv2d`.
        ValueError: it has a head already.
    """
    layer_shape(final)
    if hasattr(final, NAME):
        raise ValueError("this layer has a head already; detach it first")
    final.add_module(NAME, head)
    final.register_forward_hook(_modulate)


def detach(final: nn.Module) -> None:
    """Take a layer's head off again; nothing happens where it has none."""
    for number in [number for number, hook in final._forward_hooks.items() if hook is _modulate]:
        del final._forward_hooks[number]
    if hasattr(final, NAME):
        delattr(final, NAME)


def layer_shape(final: nn.Module) -> tuple[int, int]:
    """(H, K) of a final layer.

    Raises:
        TypeError: neither `nn.Linear` nor a 1x1 `nn.Conv2d`.
    """
    if isinstance(final, nn.Linear):
        return final.in_features, final.out_features
    if isinstance(final, nn.Conv2d) and final.kernel_size == (1, 1) and final.stride == (1, 1) and final.groups == 1:
        return final.in_channels, final.out_channels
    raise TypeError(f"the final layer must be nn.Linear or a 1x1 nn.Conv2d, not {final}")


def _modulate(final: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
    head = cast(Head, final.get_submodule(NAME))
    features: Tensor = inputs[0]
    if not (head.modulates or head.watched):
        return None
    if output.ndim == 4 and isinstance(final, nn.Conv2d):
        modulated: Modulated = head(features, output, head.slots_of(len(output)))
    else:
        rows = features.reshape(-1, features.shape[-1])
        modulated = head(rows, output.reshape(-1, output.shape[-1]), _slots(head, rows, len(output)))
    if head.watched:
        head.seen, head.last = features, modulated
    if modulated.logits is modulated.clean:
        return None
    answer = modulated.logits.reshape(output.shape)
    return answer if head.watched else answer.to(output.dtype)


def _slots(head: Head, rows: Tensor, items: int) -> Tensor:
    """The slot of each row [N]: the seat it was given, or that of its item, which has as many rows as each other."""
    if head.seats is not None:
        return head.seats[: len(rows)]
    return head.slots_of(items).repeat_interleave(len(rows) // max(1, items))
