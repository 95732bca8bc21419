"""What the modulated layer is given and gives: each item's terms, all of a batch laid out, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowTerms:
    """One item's terms as the layer understands them: a level and signed strengths by class index."""

    level: float = 1.0
    focus: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Modulated:
    """What the layer answered, and before it for the audit the logits after utility alone.

    Each is [N, K], or of a map a view [B, h, w, K]. `clean` and `utility` are the same tensor object as `logits` where
    that stage changed nothing.
    """

    logits: Tensor
    clean: Tensor
    utility: Tensor


@dataclass(frozen=True)
class Terms:
    """The terms of a batch's B items, compiled once for the layer.

    Attributes:
        items: B.
        order: [M] int64, the modulated items: first those of level 1.0 with a focus, then by level.
        span: the first of them and one past the last, by item.
        picked: `order` from the start of `span`, or None where it is the span as it stands.
        runs: matrix [D, K] float32, start and end in `order` of each level below 1.0. The terms hold the matrices, so
            that a batch or a captured graph has them whatever the layer keeps.
        targets: [T] int64 distinct classes that any item focuses on.
        focused: [F] int64 rising, items with a focus.
        focused_at: [F] int64, where each stands in `order`.
        delta: [F, T] float32 signed standard deviations in logit units.
    """

    items: int
    order: Tensor
    span: tuple[int, int]
    picked: Tensor | None
    runs: tuple[tuple[Tensor, int, int], ...]
    targets: Tensor
    focused: Tensor
    focused_at: Tensor
    delta: Tensor

    @property
    def clean(self) -> bool:
        """Whether no item is modulated at all."""
        return not len(self.order)

    @classmethod
    def of(
        cls,
        positions: Sequence[int],
        deltas: Sequence[Mapping[int, float]],
        device: torch.device,
        matrix_at: Callable[[int], Tensor],
    ) -> Terms:
        """Lay out each item's ladder position, by its matrix, and its signed standard deviations by class."""

        def indices(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        modulated = [index for index, position in enumerate(positions) if position or deltas[index]]
        order = sorted(modulated, key=positions.__getitem__)
        span = (modulated[0], modulated[-1] + 1) if modulated else (0, 0)
        runs: list[tuple[Tensor, int, int]] = []
        for position, group in groupby(range(len(order)), key=lambda place: positions[order[place]]):
            places = list(group)
            if position:
                runs.append((matrix_at(position), places[0], places[-1] + 1))
        focused = [index for index in modulated if deltas[index]]
        targets = sorted({k for index in focused for k in deltas[index]})
        return cls(
            items=len(positions),
            order=indices(order),
            span=span,
            picked=None if order == list(range(*span)) else indices([index - span[0] for index in order]),
            runs=tuple(runs),
            targets=indices(targets),
            focused=indices(focused),
            focused_at=indices([order.index(index) for index in focused]),
            delta=torch.tensor([[deltas[index].get(k, 0.0) for k in targets] for index in focused], device=device),
        )
