"""How far work may run ahead of what it is for: in items and in bytes, and never all of it by one tenant."""

from __future__ import annotations


class Room:
    """What is held by whom of a bounded room.

    A flow alone may take as much as it leaves free, so half of all; others have less each, and always find some
    (dynamic thresholds, Choudhury and Hahne, ToN 1998).

    Args:
        items: most of them.
        size: most bytes; what is begun while there are any left may go beyond by itself.
    """

    def __init__(self, items: int, size: int) -> None:
        self._items, self._size = items, size
        self._held: dict[str, tuple[int, int]] = {}

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return sum(size for _, size in self._held.values())

    def may(self, flow: str) -> bool:
        """Whether a flow may take one item more."""
        items, size = self._held.get(flow, (0, 0))
        free = self._items - sum(held for held, _ in self._held.values())
        return items < free and size < self._size - self.size

    def take(self, flow: str, items: int, size: int) -> None:
        """Hold so much more, or with negative numbers less."""
        had = self._held.pop(flow, (0, 0))
        now = (had[0] + items, had[1] + size)
        if now != (0, 0):
            self._held[flow] = now
