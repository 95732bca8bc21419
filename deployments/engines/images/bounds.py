"""How large a picture becomes on its way into a model, known before anything of that size is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from policies.errors import PayloadTooLarge

LEAST = 2**22
"""Pixels that any model may make of a picture: 50 MB of float32."""
SQUARES = 16
"""Or so many times what it makes of a square one: a full batch of those."""
_MARGIN = 4
"""A model that crops resizes to more than it is given, by less than this."""


class ResizedBound:
    """Refuses pictures that a model's preprocessing would make huge, such as 16,384 x 1 pixels by a shortest edge.

    Args:
        resizing: a model's preprocessing, of a tensor [3, h, w] uint8 on the meta device, as far as it goes there.
        square: pixels of what it makes of a square picture.

    Attributes:
        limit: most pixels of a resized picture.
    """

    def __init__(self, resizing: Callable[[Tensor], Any], square: int) -> None:
        self._resizing, self._square = resizing, square
        self.limit = max(LEAST, SQUARES * square)
        self.pixels = lru_cache(4096)(self._pixels)

    def check(self, width: int, height: int) -> None:
        """Refuse a picture by its size alone. Safe from any thread.

        Raises:
            PayloadTooLarge: code `image_too_large`, param `inputs`.
        """
        sure = self._at_most(width, height)
        if max(sure, width * height) > self.limit and self.pixels(width, height) > self.limit:
            raise PayloadTooLarge(
                f"The image has {width} x {height} pixels, which this model resizes to {self.pixels(width, height)};"
                f" the limit is {self.limit}. Crop it: it is too long and thin, or too large.",
                param="inputs",
                code="image_too_large",
            )

    def together(self, shapes: Mapping[tuple[int, ...], list[int]]) -> Iterator[list[int]]:
        """Resized pictures of each shape that run together: no more pixels than a full batch of square ones has."""
        for shape, group in shapes.items():
            most = max(1, self.limit // (shape[-2] * shape[-1]))
            yield from (group[start : start + most] for start in range(0, len(group), most))

    def _at_most(self, width: int, height: int) -> int:
        """More than a resized picture has, whatever of its sides is resized to a given length."""
        return _MARGIN * self._square * max(width, height) // min(width, height)

    def _pixels(self, width: int, height: int) -> int:
        """Pixels of the largest picture on the way into the model; where none can be asked, more than it has."""
        with _Resized() as seen:  # type: ignore[no-untyped-call]
            try:
                made = self._resizing(torch.empty(3, height, width, dtype=torch.uint8, device="meta"))
            except Exception:  # of values, which a tensor on the meta device does not have
                made = None
        if made is None and not seen.pixels:
            return self._at_most(width, height)
        final: int = made.shape[-2] * made.shape[-1] if isinstance(made, Tensor) else 0
        return max(int(seen.pixels), final)


class _Resized(TorchDispatchMode):
    """The pixels of the largest resized picture while it is on."""

    pixels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if "upsample" in str(func):
            self.pixels = max(self.pixels, made.shape[-2] * made.shape[-1])
        return made
