"""Decoding steps counted on the device: by level and by sequence, how many there were and how many agreed."""

from __future__ import annotations

import torch
from torch import Tensor

from deployments.engines.text.seat import Seat

_LEVELS = 101
"""Levels are hundredths."""


class StepCounts:
    """One row a seat, and one more for rows that nobody looks at.

    Args:
        seats: S.
        device: where the logits are.
    """

    def __init__(self, seats: int, device: torch.device) -> None:
        self._level = torch.zeros(seats + 1, dtype=torch.int64, device=device)
        self._audit = torch.zeros(_LEVELS, 2, dtype=torch.int64, device=device)
        self._streams = torch.zeros(seats + 1, 2, dtype=torch.int64, device=device)
        self._last: tuple[Tensor, Tensor] | None = None

    def write(self, number: int, seat: Seat) -> None:
        """Count a sequence under its level from now on."""
        self._level[number] = seat.level or 0

    def add(self, slots: Tensor, counts: Tensor) -> None:
        """Count a step: rows' seats [N] int64, and [N, 2] int64 of 1, and 1 where its answer is the clean one."""
        self._audit.index_add_(0, self._level[slots], counts)
        self._streams.index_add_(0, slots, counts)
        self._last = slots, counts

    def begin(self) -> None:
        """What has been counted is not taken back any more."""
        self._last = None

    def take_back(self) -> None:
        """The step since `begin` has not been."""
        if self._last is not None:
            slots, counts = self._last
            self.add(slots, -counts)
            self._last = None

    def restart(self) -> None:
        """Count the sequences under way anew."""
        self._streams.zero_()
        self._last = None

    def pop(self, number: int) -> tuple[int, int]:
        """A sequence's steps, and those that agreed; they are counted anew."""
        steps, agreed = self._streams[number].tolist()
        self._streams[number] = 0
        return int(steps), int(agreed)

    def by_level(self) -> dict[float, tuple[int, int]]:
        """Since start, by level."""
        counts = enumerate(self._audit.tolist())
        return {level / 100: (steps, agreed) for level, (steps, agreed) in counts if level and steps}
