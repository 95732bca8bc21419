"""Log-probabilities of a prompt's own tokens: rows of a step's logits beside those of its next tokens.

They are made where the others are, by the model's own final layer with the head behind it, so that below level 1.0 a
place of a prompt has the noise that an answer has there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.engines.text.seat import LogprobRecord, Seat

_AT_ONCE = 64
"""Rows whose log-probabilities are made together: of a vocabulary of 150,000 they take 40 MB."""


@dataclass(frozen=True)
class More:
    """Rows beside those of a step's next tokens.

    Attributes:
        rows: [E] int32, places in the step's packed tokens.
        slots: [E] int64, whose each is.
    """

    rows: Tensor
    slots: Tensor


class PromptRows:
    """What one step makes for the prompts that it reads. In the engine's thread.

    Args:
        device: where the logits are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._planned: list[tuple[int, Seat, int, int]] = []
        self._first = 0
        self._count = 0

    def plan(self, places: Sequence[tuple[int, int, int]], seats: Mapping[int, Seat]) -> None:
        """Take the rows of those prompts of a step that are read for their log-probabilities.

        Args:
            places: of each sequence of the step its seat, its tokens before the step, and those in it.
            seats: by number.
        """
        self._planned, start = [], 0
        for number, before, length in places:
            seat = seats.get(number)
            if seat is not None and seat.params.reads:
                # From the one after what is known already, in case a part is read again, to the last that has a next.
                first, end = max(before, len(seat.read)), min(before + length, len(seat.prompt) - 1)
                if first < end:
                    self._planned.append((number, seat, start + first - before, end - first))
            start += length

    @property
    def numbers(self) -> list[int]:
        """The seats whose prompts have rows in the step, at which they are to be answered."""
        return [number for number, *_ in self._planned]

    def begin(self, first: int) -> More | None:
        """The rows of the step that begins, which has `first` others; None where there are none."""
        self._first, self._count = first, sum(count for *_, count in self._planned)
        if not self._count:
            return None
        rows = [row for _, _, start, count in self._planned for row in range(start, start + count)]
        slots = [number for number, *_, count in self._planned for _ in range(count)]
        return More(
            torch.tensor(rows, dtype=torch.int32, device=self._device),
            torch.tensor(slots, dtype=torch.int64, device=self._device),
        )

    def taken(self, logits: Tensor) -> Tensor:
        """A step's logits [1, N + E, V] less the rows of prompts, whose log-probabilities their seats get."""
        if not self._count:
            return logits
        at = self._first
        for _, seat, _, count in self._planned:
            self._record(seat, logits[0, at : at + count])
            at += count
        return logits[:, : self._first]

    def ended(self) -> int:
        """The rows that the step had, once."""
        count, self._count, self._planned = self._count, 0, []
        return count

    @staticmethod
    def _record(seat: Seat, logits: Tensor) -> None:
        first = len(seat.read) + 1
        following = torch.tensor(seat.prompt[first : first + len(logits)], device=logits.device)
        for rows, tokens in zip(logits.split(_AT_ONCE), following.split(_AT_ONCE), strict=True):
            logprobs = rows.float().log_softmax(dim=1)
            chosen = logprobs.gather(1, tokens[:, None])[:, 0]
            top = logprobs.topk(seat.params.logprobs or 0, dim=1)
            seat.read += map(LogprobRecord, chosen.unbind(), top.values.unbind(), top.indices.unbind())
