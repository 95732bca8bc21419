"""The terms of a batch: each item's, as its tenant bought them, and all of them laid out for the modulated layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
class Terms:
    """The terms of a batch's B items, compiled once for the layer.

    Attributes:
        items: B.
        order: [M] int64, the modulated items: first those of level 1.0 with a focus, then by level.
        span: the first of them and one past the last, by item.
        picked: `order` from the start of `span`, or None where it is the span as it stands.
        runs: ladder position, start and end in `order` of each level below 1.0.
        targets: [T] int64 distinct classes that any item focuses on.
        focused: [F] int64 rising, items with a focus.
        focused_at: [F] int64, where each stands in `order`.
        delta: [F, T] float32 signed standard deviations in logit units.
    """

    items: int
    order: Tensor
    span: tuple[int, int]
    picked: Tensor | None
    runs: tuple[tuple[int, int, int], ...]
    targets: Tensor
    focused: Tensor
    focused_at: Tensor
    delta: Tensor

    @property
    def clean(self) -> bool:
        """Whether no item is modulated at all."""
        return not len(self.order)

    @classmethod
    def of(cls, positions: Sequence[int], deltas: Sequence[Mapping[int, float]], device: torch.device) -> Terms:
        """Lay out each item's ladder position and its signed standard deviations by class."""

        def indices(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        modulated = [index for index, position in enumerate(positions) if position or deltas[index]]
        order = sorted(modulated, key=positions.__getitem__)
        span = (modulated[0], modulated[-1] + 1) if modulated else (0, 0)
        runs: list[tuple[int, int, int]] = []
        for position, group in groupby(range(len(order)), key=lambda place: positions[order[place]]):
            places = list(group)
            if position:
                runs.append((position, places[0], places[-1] + 1))
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
