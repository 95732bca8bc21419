"""Terms of running requests in device tables: a step is modulated with static shapes and without Python per row."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.focus import apply_focus
from policies.layer import Modulated, ModulatedLayer
from policies.rows import RowTerms


@dataclass(frozen=True)
class _View:
    """What a step reads: for L levels and T targets a seat. Row `seats` of each is nobody's, and stays clean."""

    slot: Tensor  # [seats + 1] int64, 1 + the seat's row of `matrices`; 0 at level 1.0
    matrices: Tensor  # [L, D, K] float32
    targets: Tensor  # [seats + 1, T] int64
    delta: Tensor  # [seats + 1, T] float32, 0 where the seat has fewer targets


class TermsTable:
    """The terms of up to `seats` running requests, laid out so that a step's shapes depend on no row's terms.

    `set` and `clear` run where a request comes and goes, from any thread; `modulate` is then tensor work alone: one
    product against the stacked matrices of the levels in use, with zeros for a row's other levels. It does not
    synchronise, compiles as one graph, and may be captured in a CUDA graph, which holds while `key` stays the same.

    On a CPU the shapes follow the levels and targets in use; elsewhere they are rounded up to powers of two, so that
    few graphs serve all mixes.

    Args:
        layer: the modulated layer, on its device.
        seats: how many requests run at once.
        levels, targets: room that is made at once for distinct levels below 1.0, and for focus targets of a seat.
            More is made when it is needed, which changes `key`.
    """

    def __init__(self, layer: ModulatedLayer, seats: int, *, levels: int = 0, targets: int = 0) -> None:
        self.layer, self.seats = layer, seats
        self._device = next(layer.final.parameters()).device
        self._seated: dict[int, tuple[int, int]] = {}  # ladder position and number of focus targets
        self._positions: list[int | None] = []
        self._generation = 0
        self._lock = threading.Lock()
        with torch.inference_mode(False):
            self._slot = torch.zeros(seats + 1, dtype=torch.int64, device=self._device)
            self._matrices = self._room(0, layer.ladder.depth, layer.ladder.classes)
            self._targets = self._room(seats + 1, 0, dtype=torch.int64)
            self._delta = self._room(seats + 1, 0)
            self._grow(levels, targets)
            self._show()

    @property
    def key(self) -> tuple[int, int, int]:
        """Levels and targets that a step is laid out for, and how often the tables have moved."""
        return self._view.matrices.shape[0], self._view.targets.shape[1], self._generation

    @torch.inference_mode(False)
    def set(self, seat: int, terms: RowTerms) -> None:
        """Seat a request; the tables hold its terms when this returns. It may build a level's matrix, for a second.

        Raises:
            IndexError: no such seat.
            ValueError: terms out of range, as `ModulatedLayer.compile`.
        """
        if not 0 <= seat < self.seats:
            raise IndexError(f"seat must lie in 0..{self.seats - 1}, not {seat}")
        position = self.layer.calibration.position(terms.level)
        deltas = self.layer.deltas(terms)
        self.layer.prepare(terms)
        with self._lock:
            self._vacate(seat)
            self._seated[seat] = position, len(deltas)
            self._slot[seat] = self._slot_of(position, self.layer.matrix(terms.level)) if position else 0
            self._grow(0, len(deltas))
            self._delta[seat] = 0.0
            if deltas:
                self._targets[seat, : len(deltas)] = torch.tensor(list(deltas), device=self._device)
                self._delta[seat, : len(deltas)] = torch.tensor(list(deltas.values()), device=self._device)
            self._show()
        self._wait()

    @torch.inference_mode(False)
    def clear(self, seat: int) -> None:
        """Free a seat, whose rows are then answered clean."""
        with self._lock:
            self._vacate(seat)
            self._slot[seat], self._delta[seat] = 0, 0.0
            self._show()
        self._wait()

    def modulate(self, features: Tensor, logits: Tensor, seats: Tensor) -> Modulated:
        """Redistribute a step's clean logits.

        Args:
            features: [N, H], the final layer's input.
            logits: [N, K], its clean output.
            seats: [N] int32 or int64, the seat of each row; -1 for nobody's, which stays clean.

        Returns:
            Logits in `logits`' dtype, and the logits after utility in float32.
        """
        view = self._view
        levels, targets = view.matrices.shape[0], view.targets.shape[1]
        if not levels and not targets:
            return Modulated(logits, logits, logits)
        seat = seats.long().remainder(self.seats + 1)
        phi = self.layer.ladder.phi(features)
        utility = logits.float()
        if levels:
            mine = view.slot[seat][:, None] == torch.arange(1, levels + 1, device=phi.device)
            placed = torch.where(mine[:, :, None], phi[:, None, :], 0.0).flatten(1)
            utility = torch.addmm(utility, placed, view.matrices.flatten(0, 1))
        out = utility
        if targets:
            chosen = view.targets[seat]
            xi = (self.layer.focus_rows(chosen) * phi[:, None, :]).sum(dim=2)
            out = apply_focus(utility, chosen, view.delta[seat], xi, self.layer.contention)
        return Modulated(out.to(logits.dtype), logits, utility if levels else logits)

    def _slot_of(self, position: int, matrix: Tensor) -> int:
        """1 + the row of `matrices` that holds a ladder position; the lowest free one where none does yet."""
        if position in self._positions:
            return 1 + self._positions.index(position)
        if None not in self._positions:
            self._positions.append(None)
        index = self._positions.index(None)
        self._grow(index + 1, 0)
        self._matrices[index] = matrix
        self._positions[index] = position
        return 1 + index

    def _vacate(self, seat: int) -> None:
        position, _ = self._seated.pop(seat, (0, 0))
        if position and all(other != position for other, _ in self._seated.values()):
            self._positions[self._positions.index(position)] = None
            while self._positions and self._positions[-1] is None:
                self._positions.pop()

    def _grow(self, levels: int, targets: int) -> None:
        """Make room; a step in flight goes on reading the tables that it has."""
        have, rows = self._matrices, self._targets
        if levels > have.shape[0]:
            self._matrices = self._room(self._rounded(levels), *have.shape[1:])
            self._matrices[: have.shape[0]] = have
        if targets > rows.shape[1]:
            shape = (self.seats + 1, self._rounded(targets))
            self._targets, delta = self._room(*shape, dtype=torch.int64), self._room(*shape)
            self._targets[:, : rows.shape[1]], delta[:, : rows.shape[1]] = rows, self._delta
            self._delta = delta
        self._generation += levels > have.shape[0] or targets > rows.shape[1]

    def _show(self) -> None:
        levels = min(self._rounded(len(self._positions)), self._matrices.shape[0])
        most = max((count for _, count in self._seated.values()), default=0)
        targets = min(self._rounded(most), self._targets.shape[1])
        self._view = _View(self._slot, self._matrices[:levels], self._targets[:, :targets], self._delta[:, :targets])

    def _rounded(self, count: int) -> int:
        return count if self._device.type == "cpu" or not count else 1 << (count - 1).bit_length()

    def _room(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _wait(self) -> None:
        """The step may run on another stream than the one that wrote."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
