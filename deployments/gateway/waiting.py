"""How many requests wait for each model's answer, here: what this gateway calls busy."""

from __future__ import annotations

from collections import Counter


class Waiting:
    """Requests of one gateway that have been admitted and have no answer yet, of a stream no first piece, by model."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __getitem__(self, model: str) -> int:
        return self._counts[model]

    def enter(self, model: str) -> Place:
        """One more that waits."""
        self._counts[model] += 1
        return Place(self._counts, model)


class Place:
    """One request's; leaving it again does nothing."""

    def __init__(self, counts: Counter[str], model: str) -> None:
        self._counts, self._model, self._waits = counts, model, True

    def leave(self) -> None:
        """Its answer has come, or it has ended without one."""
        if self._waits:
            self._waits = False
            self._counts[self._model] -= 1
