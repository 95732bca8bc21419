"""What each slot of a head is answered at, as tables on the device, and the noise that this adds to its logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from policies.head.buffers import Tables
from policies.head.focus import Target

WIDE = 2**20
"""Elements of a level's matrix from which on a CPU multiplies level by level: a vocabulary's."""
_NONE = -1


@dataclass(frozen=True)
class Setting:
    """What a slot is answered at.

    Attributes:
        level: in hundredths; one below the model's floor is raised to it.
        focus: signed strengths in [-0.99, 0.99] by class, by token, or by `Target` where a phrase goes before it.
        position: the place on the noise ladder, in place of the level's: what calibrates asks so.
    """

    level: float = 1.0
    focus: Mapping[int | Target, float] = field(default_factory=dict)
    position: int | None = None


class LevelTable(Tables):
    """Each slot's level, and the matrices of the levels in use, a cell each.

    Args:
        slots: S. One more is of nobody: its logits stay as they are.
        depth: D.
        classes: K.
    """

    cell: Tensor
    """[S + 1] int64, which cell is each slot's; -1: level 1.0."""
    stack: Tensor
    """[L, D, K] float32, the matrices."""

    def __init__(self, slots: int, depth: int, classes: int) -> None:
        super().__init__()
        self.table("cell", torch.full((slots + 1,), _NONE, dtype=torch.int64))
        self.table("stack", torch.zeros(0, depth, classes))
        self._positions = [0] * (slots + 1)
        self._cells: list[int] = []
        self._read = 0
        self.in_use = False
        """Whether any slot is below level 1.0."""

    def position(self, slot: int) -> int:
        """Where on the ladder a slot is, as of the last write."""
        return self._positions[slot]

    def write(self, first: int, positions: Sequence[int], matrix: Callable[[int], Tensor]) -> None:
        """Put slots from `first` on at ladder positions, taking the matrices of those that have no cell yet."""
        last = first + len(positions)
        if self._positions[first:last] == list(positions):
            return
        after = [*self._positions[:first], *positions, *self._positions[last:]]
        wanted = set(after) - {0}
        for position in sorted(wanted - set(self._cells)):
            self._fill(position, wanted, matrix(position))
        self._positions = after
        place = {position: at for at, position in enumerate(self._cells) if position in wanted}
        self.in_use, self._read = bool(place), _room(max(place.values(), default=-1) + 1)
        cells = [place.get(position, _NONE) for position in positions]
        self.cell[first:last] = torch.tensor(cells, dtype=torch.int64).to(self.cell.device)

    def _fill(self, position: int, wanted: set[int], matrix: Tensor) -> None:
        free = next((at for at, held in enumerate(self._cells) if held not in wanted), None)
        if free is None:
            free = len(self._cells)
            grown = self.stack.new_zeros(_room(free + 1), *self.stack.shape[1:])
            grown[:free] = self.stack
            self.table("stack", grown)
            self._cells += [0] * (len(grown) - free)
        self.stack[free] = matrix.to(self.stack.device)
        self._cells[free] = position

    def add_noise(self, logits: Tensor, phi: Tensor, slots: Tensor) -> Tensor:
        """Logits [N, K] float32 of rows with their slots' noise at phi [N, D], a new tensor; slots [N] int64."""
        cells, stack = self.cell[slots], self.stack[: self._read]
        wide = stack.shape[1] * stack.shape[2] >= WIDE
        # A CPU reads a value back for nothing, but whoever compiles the step could not go on after it.
        if wide and cells.device.type == "cpu" and not torch.compiler.is_compiling():
            return add_by_level(logits, phi, cells, stack)
        return add_at_once(logits, phi, cells, stack)

    def noise(self, phi: Tensor, slots: Tensor) -> Tensor:
        """The noise of maps: phi [B, S, D] of their squares and slots [B] to [B, K, S]."""
        cells = self.cell[slots]
        matrices = self.stack[cells.clamp(min=0)] * (cells != _NONE)[:, None, None]
        return (phi @ matrices).transpose(1, 2)


def add_at_once(logits: Tensor, phi: Tensor, cells: Tensor, stack: Tensor) -> Tensor:
    """Logits [N, K] and each row's noise by one product, in which all other levels of a row meet zeros.

    Args:
        phi: [N, D].
        cells: [N] int64, which of `stack` is each row's; -1: none, to whose logits exactly 0 is added.
        stack: [L, D, K].
    """
    which = cells[:, None] == torch.arange(len(stack), device=cells.device)
    return torch.addmm(logits, (phi[:, None] * which[:, :, None]).flatten(1), stack.flatten(0, 1))


def add_by_level(logits: Tensor, phi: Tensor, cells: Tensor, stack: Tensor) -> Tensor:
    """The same by a product a level: at eight levels of a vocabulary of 49,152 half of what one takes a CPU."""
    rows: dict[int, list[int]] = {}
    for row, cell in enumerate(cells.tolist()):
        rows.setdefault(cell, []).append(row)
    noisy = logits.clone()
    for cell, own in rows.items():
        if cell == _NONE:
            continue
        if len(own) == 1:
            noisy[own[0]].addmv_(stack[cell].T, phi[own[0]])
        elif 2 * len(own) < len(cells):
            at = torch.tensor(own)
            noisy.index_add_(0, at, phi[at] @ stack[cell])
        else:
            noisy.addmm_(phi * (cells == cell)[:, None], stack[cell])
    return noisy


def _room(cells: int) -> int:
    """Few different shapes: whatever compiles or captures a step does so once for each."""
    return cells if cells <= 4 else 1 << (cells - 1).bit_length()
