"""The matrices of levels in use: built when first asked for, the last used kept, within a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

LIMIT_BYTES = 2**28
"""42 levels of a vocabulary of 49,152 at D = 32, and every level of an image model."""


class Sized(Protocol):
    """What tells its size in bytes, as a tensor does."""

    @property
    def nbytes(self) -> int: ...


M = TypeVar("M", bound=Sized)


class Matrices(Generic[M]):
    """Matrices [D, K] float32, as tensors or laid out otherwise, by ladder position. Safe from any thread.

    Those used last are kept as far as `limit` goes, and at least one. Who still holds another one, as a batch or a
    sequence under way does, shares it with all that ask for it: so memory is `limit` and one matrix for each further
    level under way, and what is under way is never built twice.

    Args:
        build: a position to its matrix, on the device where it is used; may take a second; called once at a time.
        limit: in bytes.
    """

    def __init__(self, build: Callable[[int], M], limit: int = LIMIT_BYTES) -> None:
        self._build, self._limit = build, limit
        self._kept: OrderedDict[int, M] = OrderedDict()
        self._alive: WeakValueDictionary[int, M] = WeakValueDictionary()
        self._building, self._lock = threading.Lock(), threading.Lock()

    def at(self, position: int, *, keep: bool = True) -> M:
        """The matrix of a position.

        Args:
            keep: whether this counts as a use, for which it is kept.
        """
        matrix = self._found(position)
        # The lock is for builds alone: a batch must not wait for another level that is being built.
        if matrix is None:
            with self._building:
                matrix = self._found(position)
                if matrix is None:
                    matrix = self._build(position)
        with self._lock:
            self._alive[position] = matrix
            if keep:
                self._use(position, matrix)
        return matrix

    def kept(self) -> list[int]:
        """Positions whose matrices are kept, the last used last."""
        with self._lock:
            return list(self._kept)

    def _found(self, position: int) -> M | None:
        with self._lock:
            return self._alive.get(position)

    def _use(self, position: int, matrix: M) -> None:
        self._kept[position] = matrix
        self._kept.move_to_end(position)
        while len(self._kept) > max(1, self._limit // matrix.nbytes):  # all are of one size
            self._kept.popitem(last=False)
