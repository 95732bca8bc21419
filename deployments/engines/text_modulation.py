"""All running sequences modulated at once: terms laid out when their set changes, a few products a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deployments.engines.level_matrix import LevelMatrix
from deployments.engines.text_focus import FocusPlan, TextFocus, plan_focus
from deployments.engines.words import FocusEntry
from policies.layer import Modulated, ModulatedLayer, RowTerms
from policies.matrices import Matrices


@dataclass(frozen=True)
class TextTerms:
    """A sequence's level and the tokens that its focus acts on, with signed strengths."""

    level: float = 1.0
    focus: Mapping[FocusEntry, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LevelSeats:
    """The seats at a level: its matrix, how many they are, and which, [S + 1, 1] float32 of 0 and 1."""

    matrix: LevelMatrix
    number: int
    which: Tensor


@dataclass(frozen=True)
class TermsPlan:
    """The terms of all running sequences.

    Attributes:
        levels: those below 1.0 that somebody has.
        focus: None where nobody has one.
    """

    levels: tuple[LevelSeats, ...] = ()
    focus: FocusPlan | None = None


class TextModulation:
    """`ModulatedLayer`'s answer for a set of sequences that changes seldom and is stepped often.

    Rows at level 1.0 without focus keep the model's own logits, bit for bit: what is added to them is 0.

    Args:
        layer: whose field, calibration and contention are used.
        seats: S, how many sequences there can be.
    """

    def __init__(self, layer: ModulatedLayer, seats: int) -> None:
        self._layer, self._seats = layer, seats
        self._device = next(layer.final.parameters()).device
        self._matrices = Matrices(lambda position: LevelMatrix(layer.matrix_at(position)))
        self._focus = TextFocus(seats, layer.contention, self._device)

    def prepare(self, terms: TextTerms) -> LevelMatrix | None:
        """Build what these terms need, so that no step waits for it. From any thread.

        Returns:
            The level's own matrix, None at 1.0. Whoever holds it keeps it at hand, whatever levels others ask for
            meanwhile.
        """
        self._layer.prepare(RowTerms(self._delivered(terms), {entry.token: f for entry, f in terms.focus.items()}))
        position = self.position(terms)
        return self._matrix_at(position) if position else None

    def position(self, terms: TextTerms) -> int:
        """Where on the ladder a level is delivered now."""
        return self._layer.calibration.position(self._delivered(terms))

    def _matrix_at(self, position: int) -> LevelMatrix:
        # Held by the sequences under way alone: the layer keeps levels that have none, in half the memory.
        return self._matrices.at(position, keep=False)

    def _delivered(self, terms: TextTerms) -> float:
        # A refit may have raised the floor above the level of a sequence under way.
        return max(terms.level, self._layer.floor)

    def write(self, seat: int, terms: TextTerms, prompt: list[int]) -> None:
        """Give a seat to a new sequence."""
        if terms.focus:
            self._focus.write(seat, prompt)

    def plan(self, terms: Mapping[int, TextTerms]) -> TermsPlan:
        """Lay out the terms of prepared sequences, by seat."""
        seated: dict[int, list[int]] = {}
        for seat, own in terms.items():
            if position := self.position(own):
                seated.setdefault(position, []).append(seat)
        levels = []
        for position, seats in sorted(seated.items()):
            which = torch.zeros(self._seats + 1, 1)
            which[seats] = 1.0
            levels.append(LevelSeats(self._matrix_at(position), len(seats), which.to(self._device)))
        focus = {seat: own.focus for seat, own in terms.items() if own.focus}
        return TermsPlan(tuple(levels), plan_focus(focus, self._seats, self._layer) if focus else None)

    def modulate(self, features: Tensor, logits: Tensor, slots: Tensor, plan: TermsPlan) -> Modulated:
        """Redistribute a step's clean logits.

        Args:
            features: [N, H], the final layer's input.
            logits: [N, V] float32, its clean output.
            slots: [N] int64, each row's seat; S for a row that nobody looks at.
        """
        if not plan.levels and plan.focus is None:
            return Modulated(logits, logits, logits)
        phi = self._layer.ladder.phi(features)
        utility = logits.clone() if plan.levels else logits
        for level in plan.levels:
            _add_noise(utility, phi, slots, level)
        out = utility if plan.focus is None else self._focus.apply(utility, phi, slots, plan.focus)
        return Modulated(out, logits, utility)

    def chosen(self, tokens: Tensor, slots: Tensor, plan: TermsPlan) -> None:
        """Remember the tokens [N] int64 of the step that `modulate` was called for."""
        if plan.focus is not None:
            self._focus.chosen(tokens, slots, plan.focus)


def _add_noise(logits: Tensor, phi: Tensor, slots: Tensor, level: LevelSeats) -> None:
    """Add a level's noise at phi [N, D] to the rows of logits [N, V] whose seats, slots [N], are at the level.

    A CPU's product takes longer for more rows, so it gets these only. Elsewhere the matrix is read once whatever the
    rows, and to know them would be to wait for the device.
    """
    own = level.which[slots]
    if logits.device.type == "cpu":
        rows = own[:, 0].nonzero()[:, 0]
        logits.index_add_(0, rows, level.matrix.noise(phi[rows], level.number))
    else:
        logits.addmm_(phi * own, level.matrix.plain)
