"""The modulated final layer: any Linear or 1x1 Conv2d, with each row's logits redistributed to that row's terms."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
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
    """The terms of a batch's N rows, compiled once for the layer.

    Attributes:
        levels: ladder position to the rows [n] int64 that are delivered at it; rows of level 1.0 are in none.
        targets: [T] int64 distinct classes that any row focuses on.
        focused: [F] int64 rows with a focus.
        delta: [F, T] float32 signed standard deviations in logit units.
    """

    levels: Mapping[int, Tensor]
    targets: Tensor
    focused: Tensor
    delta: Tensor

    @property
    def clean(self) -> bool:
        """Whether no row is modulated at all."""
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
        self._focus_matrix: Tensor | None = None
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
        if (not position or position in self._matrices) and (not terms.focus or self._focus_matrix is not None):
            return
        with self._building:
            if position and position not in self._matrices:
                self._matrices[position] = self.ladder.matrix(position).to(device)
            if terms.focus and self._focus_matrix is None:
                self._focus_matrix = self.ladder.focus_matrix().to(device)

    def compile(self, rows: Sequence[RowTerms], repeat: int = 1) -> Terms:  # type: ignore[override]
        """Lay out the terms of items for rows: each item covers `repeat` consecutive rows (the pixels of an image).

        Raises:
            ValueError: a level below the floor, or a strength or class out of range.
        """
        device = next(self.final.parameters()).device
        items: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            if position := self.calibration.position(row.level):
                items.setdefault(position, []).append(index)
            self.prepare(row)
        targets = sorted({k for row in rows for k in row.focus})
        focused = [index for index, row in enumerate(rows) if row.focus]
        delta = [[self._delta(k, rows[index].focus.get(k, 0.0)) for k in targets] for index in focused]
        return Terms(
            levels={position: _spread(indices, repeat, device) for position, indices in items.items()},
            targets=torch.tensor(targets, dtype=torch.int64, device=device),
            focused=_spread(focused, repeat, device),
            delta=torch.tensor(delta, device=device).reshape(len(focused), len(targets)).repeat_interleave(repeat, 0),
        )

    def modulate(self, features: Tensor, logits: Tensor, terms: Terms) -> Modulated:
        """Redistribute clean logits.

        Args:
            features: [N, H], the final layer's input.
            logits: [N, K], its clean output.
        """
        if terms.clean:
            return Modulated(logits, logits, logits)
        utility = logits.float().clone()
        for position, rows in terms.levels.items():
            utility[rows] += self.ladder.phi(features[rows]) @ self._matrices[position]
        out = utility
        if len(terms.focused):
            assert self._focus_matrix is not None  # compile() built it
            rows = terms.focused
            xi = self.ladder.phi(features[rows]) @ self._focus_matrix[:, terms.targets]
            out = utility.index_copy(
                0, rows, apply_focus(utility[rows], terms.targets, terms.delta, xi, self.contention)
            )
        return Modulated(out.to(logits.dtype), logits, utility if terms.levels else logits)

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
        flat, clean = as_rows(self.final, features), as_rows(self.final, logits)
        terms = self.compile(self._rows, repeat=len(flat) // features.shape[0])
        self.last = self.modulate(flat, clean, terms)
        return logits if terms.clean else from_rows(self.final, self.last.logits, logits.shape)

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


def _spread(items: list[int], repeat: int, device: torch.device) -> Tensor:
    """Item indices to row indices [len(items) * repeat] int64."""
    start = torch.tensor(items, dtype=torch.int64, device=device)[:, None] * repeat
    return (start + torch.arange(repeat, device=device)[None, :]).reshape(-1)
