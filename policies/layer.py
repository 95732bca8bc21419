"""The modulated final layer: any Linear or 1x1 Conv2d, with each row's logits redistributed to that row's terms."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.calibration import Calibration
from policies.focus import apply_focus, focus_std


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
        levels: ladder position to the items [n] int64 that are delivered at it; those of level 1.0 are in none.
        targets: [T] int64 distinct classes that any item focuses on.
        focused: [F] int64 items with a focus.
        delta: [F, T] float32 signed standard deviations in logit units.
    """

    items: int
    levels: Mapping[int, Tensor]
    targets: Tensor
    focused: Tensor
    delta: Tensor

    @property
    def clean(self) -> bool:
        """Whether no item is modulated at all."""
        return not self.levels and not len(self.focused)


@dataclass(frozen=True)
class Modulated:
    """What the layer answered: logits [N, K], and before them for the audit the logits after utility alone.

    `clean` and `utility` are the same tensor object as `logits` where that stage changed nothing.
    """

    logits: Tensor
    clean: Tensor
    utility: Tensor


class ModulatedLayer(nn.Module):
    """A final layer whose every row is answered at its tenant's terms, in one batch.

    The squares of a map that share their noise are those of the calibration's `block`: who smooths a mask finds fewer
    draws to average, and the field costs a block-th of a block-th.

    Order: clean logits, utility, focus. Rows at level 1.0 without focus keep the wrapped layer's own logits, bit for
    bit. Noise is computed in float32 and the answer returned in the wrapped layer's dtype.

    Args:
        final: `nn.Linear` or 1x1 `nn.Conv2d`.
        calibration: solved for this layer on this installation's field.
        secret: the installation's noise secret.
        contention: how many of the highest logits contend for focus: 2 for classes, 50 for a vocabulary.

    Raises:
        TypeError: another kind of final layer.
    """

    def __init__(self, final: nn.Module, calibration: Calibration, secret: bytes, *, contention: int = 2) -> None:
        super().__init__()
        features, classes = layer_shape(final)
        self.final = final
        self.calibration = calibration
        self.contention = contention
        self.ladder = calibration.ladder(secret, features=features, classes=classes)
        self.last: Modulated | None = None
        self._matrices: dict[int, Tensor] = {}
        self._focus_columns: Tensor | None = None  # [K, D]
        self._building = threading.Lock()
        self._rows: Sequence[RowTerms] | None = None

    @property
    def floor(self) -> float:
        """The lowest level this layer delivers."""
        return self.calibration.floor

    def prepare(self, terms: RowTerms) -> None:
        """Build the matrices that these terms need, so that no batch waits for them. Safe from any thread."""
        device = next(self.final.parameters()).device
        position = self.calibration.position(terms.level)
        # Without the lock where nothing is missing: a batch must not wait for another level that is being built.
        if (not position or position in self._matrices) and (not terms.focus or self._focus_columns is not None):
            return
        with self._building:
            if position and position not in self._matrices:
                self._matrices[position] = self.ladder.matrix(position).to(device)
            if terms.focus and self._focus_columns is None:
                self._focus_columns = self.ladder.focus_matrix().T.contiguous().to(device)

    def matrix(self, position: int) -> Tensor:
        """C at a ladder position above 0 that is prepared: [D, K] float32 on the layer's device."""
        return self._matrices[position]

    def focus_rows(self, targets: Tensor) -> Tensor:
        """The prepared focus field's columns at target classes: [...] int64 to [..., D] float32."""
        assert self._focus_columns is not None  # prepare() built it
        return self._focus_columns[targets]

    def deltas(self, terms: RowTerms) -> dict[int, float]:
        """Signed standard deviations in logit units of a row's focus, by class.

        Raises:
            ValueError: a class or a strength out of range.
        """
        return {k: self._delta(k, strength) for k, strength in terms.focus.items()}

    def compile(self, rows: Sequence[RowTerms]) -> Terms:  # type: ignore[override]
        """Lay out the terms of a batch's items on the layer's device.

        Raises:
            ValueError: a level below the floor, or a strength or class out of range.
        """
        device = next(self.final.parameters()).device
        levels: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            if position := self.calibration.position(row.level):
                levels.setdefault(position, []).append(index)
            self.prepare(row)
        targets = sorted({k for row in rows for k in row.focus})
        focused = [index for index, row in enumerate(rows) if row.focus]
        deltas = [self.deltas(rows[index]) for index in focused]
        delta = [[row.get(k, 0.0) for k in targets] for row in deltas]
        return Terms(
            items=len(rows),
            levels={position: torch.tensor(items, device=device) for position, items in levels.items()},
            targets=torch.tensor(targets, dtype=torch.int64, device=device),
            focused=torch.tensor(focused, dtype=torch.int64, device=device),
            delta=torch.tensor(delta, device=device).reshape(len(focused), len(targets)),
        )

    def modulate(self, features: Tensor, logits: Tensor, terms: Terms, spread: Tensor | None = None) -> Modulated:
        """Redistribute clean logits. Each item covers the same number S of consecutive rows.

        Args:
            features: [B * S, H], the final layer's input; with `spread` [B * S', H], one row for each block of a map.
            logits: [B * S, K], its clean output.
            spread: [S] int64, the block that each row of an item takes its noise from.
        """
        if terms.clean:
            return Modulated(logits, logits, logits)
        shape = (terms.items, -1, logits.shape[1])
        seen = features.reshape(terms.items, -1, features.shape[-1])
        utility = logits.float().reshape(shape).clone()
        for position, items in terms.levels.items():
            utility[items] += self._field(seen[items], self._matrices[position], spread)
        out = utility
        if len(terms.focused):
            items, rows = terms.focused, utility[terms.focused]
            xi = self._field(seen[items], self.focus_rows(terms.targets).T, spread).flatten(0, 1)
            delta = terms.delta.repeat_interleave(rows.shape[1], dim=0)
            moved = apply_focus(rows.flatten(0, 1), terms.targets, delta, xi, self.contention)
            out = utility.index_copy(0, items, moved.reshape(rows.shape))
        modulated = out.reshape(logits.shape).to(logits.dtype)
        return Modulated(modulated, logits, utility.reshape(logits.shape) if terms.levels else logits)

    def _field(self, features: Tensor, matrix: Tensor, spread: Tensor | None) -> Tensor:
        """phi(h) C of items' feature rows [n, S', H], given to each of their rows: [n, S, columns of C]."""
        noise = (self.ladder.phi(features.flatten(0, 1)) @ matrix).reshape(*features.shape[:2], -1)
        return noise if spread is None else noise[:, spread]

    @contextmanager
    def rows(self, rows: Sequence[RowTerms]) -> Iterator[None]:
        """Within, `forward` answers item i of its batch at `rows[i]`; without, it answers clean."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    def forward(self, features: Tensor) -> Tensor:
        """The wrapped layer's logits, modulated: features [N, H] or [B, S, H] (linear), or [B, H, h, w] (1x1 conv).

        Raises:
            ValueError: rows were given for another batch size.
        """
        logits: Tensor = self.final(features)
        if self._rows is None:
            return logits
        if len(self._rows) != features.shape[0]:
            raise ValueError(f"terms for {len(self._rows)} items, but a batch of {features.shape[0]}")
        terms, clean = self.compile(self._rows), as_rows(self.final, logits)
        if terms.clean:
            self.last = Modulated(clean, clean, clean)
            return logits
        if isinstance(self.final, nn.Conv2d):
            block = self.calibration.block
            seen = as_rows(self.final, block_means(features, block))
            self.last = self.modulate(seen, clean, terms, block_of(*logits.shape[-2:], block, logits.device))
        else:
            self.last = self.modulate(as_rows(self.final, features), clean, terms)
        return from_rows(self.final, self.last.logits, logits.shape)

    def _delta(self, target: int, strength: float) -> float:
        if not 0 <= target < self.ladder.classes:
            raise ValueError(f"focus names class {target}, but there are {self.ladder.classes}")
        gaps = self.calibration.favour_gap if strength > 0 else self.calibration.avoid_gap
        delta = focus_std(strength, gaps[target] if len(gaps) > 1 else gaps[0])
        return delta if strength > 0 else -delta


def layer_shape(final: nn.Module) -> tuple[int, int]:
    """(H, K) of a final layer.

    Raises:
        TypeError: neither `nn.Linear` nor a 1x1 `nn.Conv2d`.
    """
    if isinstance(final, nn.Linear):
        return final.in_features, final.out_features
    if isinstance(final, nn.Conv2d) and final.kernel_size == (1, 1) and final.groups == 1:
        return final.in_channels, final.out_channels
    raise TypeError(f"the final layer must be nn.Linear or a 1x1 nn.Conv2d, not {final}")


def as_rows(final: nn.Module, x: Tensor) -> Tensor:
    """[B, C, h, w] (conv) or [..., C] (linear) to rows [N, C], items in order."""
    return x.movedim(1, -1).reshape(-1, x.shape[1]) if isinstance(final, nn.Conv2d) else x.reshape(-1, x.shape[-1])


def from_rows(final: nn.Module, rows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `as_rows`, to a layer output of `shape`."""
    if isinstance(final, nn.Conv2d):
        batch, classes, height, width = shape
        return rows.reshape(batch, height, width, classes).movedim(-1, 1)
    return rows.reshape(shape)


def block_means(features: Tensor, block: int) -> Tensor:
    """Mean over each block x block square of a map [B, H, h, w]; smaller squares at the right and lower edge."""
    return F.avg_pool2d(features, block, ceil_mode=True) if block > 1 else features


@cache
def block_of(height: int, width: int, block: int, device: torch.device) -> Tensor:
    """The index into `block_means`' rows of each row of a map of (height, width), [height * width] int64."""
    y, x = (torch.arange(size, device=device) // block for size in (height, width))
    return (y[:, None] * -(-width // block) + x[None, :]).flatten()
