"""Modules whose tables follow their model to a device, and stay in float32 whatever the model is cast to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class Tables(nn.Module):
    """Buffers that are no part of the state dict: they are made anew from a calibration and a secret."""

    def table(self, name: str, values: Tensor) -> None:
        """Register a buffer, or put another one in its place."""
        with torch.inference_mode(False):
            # A tensor made in inference mode could not be used where gradients are taken later.
            self.register_buffer(name, values.clone() if values.is_inference() else values, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(values: Tensor) -> Tensor:
            return values.to(fn(values.new_empty(0)).device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self
