"""The matrices of levels: built in a thread of their own when first asked for, and kept within a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from policies.field.ladder import NoiseLadder

LIMIT_BYTES = 2**28
"""42 levels of a vocabulary of 49,152 at D = 32, and every level of an image model."""


class Levels:
    """Matrices [D, K] float32 by ladder position, and the focus field's [K, D]. Safe from any thread.

    What is sold is kept, and of all else what was used last as far as `limit` goes. Whoever holds another matrix, as a
    sequence that waits for its seat does, shares it with all that ask for it; so what is in use is never built twice.
    Builds run one at a time in a thread of this object's own: nobody's request waits in a pool behind another's level.

    Args:
        ladder: the field.
        device: where the matrices are used.
        limit: in bytes.
    """

    def __init__(self, ladder: NoiseLadder, device: torch.device, limit: int = LIMIT_BYTES) -> None:
        self._ladder, self._limit, self._device = ladder, limit, device
        self._sold: frozenset[int] = frozenset()
        self._focus: Tensor | None = None
        self._clear()

    def _clear(self) -> None:
        self._kept: OrderedDict[int, Tensor] = OrderedDict()
        self._alive: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
        self._building: dict[int | None, Future[Tensor]] = {}
        self._wished: set[int] = set()  # to be kept once they are built
        self._builder: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_ladder": self._ladder, "_limit": self._limit, "_device": self._device, "_sold": self._sold}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _focus=None)
        self._clear()

    def to(self, device: torch.device) -> None:
        """Use matrices on another device from now on."""
        if device != self._device:
            with self._lock:
                self._device, self._focus = device, None
                self._kept.clear()
                self._alive.clear()

    def at(self, position: int, *, keep: bool = True) -> Future[Tensor]:
        """The matrix of a position, which may take a second to build.

        Args:
            keep: whether this counts as a use, for which it is kept.
        """
        with self._lock:
            matrix = self._alive.get(position)
            if matrix is None:
                if keep:
                    self._wished.add(position)
                return self._built(position)
            if keep:
                self._use(position, matrix)
        return _done(matrix)

    def focus(self) -> Future[Tensor]:
        """The focus field's columns by class, [K, D] float32."""
        with self._lock:
            return _done(self._focus) if self._focus is not None else self._built(None)

    def keep(self, positions: Collection[int]) -> None:
        """Never give up the matrices of these positions, whatever else is used; build them when nobody else waits."""
        with self._lock:
            self._sold = frozenset(positions)
            self._build_sold()

    def kept(self) -> list[int]:
        """Positions whose matrices are kept, the last used last."""
        with self._lock:
            return list(self._kept)

    def _built(self, position: int | None) -> Future[Tensor]:
        if position not in self._building:
            if self._builder is None:
                self._builder = ThreadPoolExecutor(1, "levels")
            # Not the executor's own future: whoever leaves cancels what they wait for, and others wait for it as well.
            promise: Future[Tensor] = Future()
            promise.set_running_or_notify_cancel()
            self._building[position] = promise
            self._builder.submit(self._keep_promise, position, promise)
        return self._building[position]

    def _keep_promise(self, position: int | None, promise: Future[Tensor]) -> None:
        try:
            promise.set_result(self._build(position))
        except BaseException as error:
            promise.set_exception(error)
        else:
            with self._lock:
                self._build_sold()

    def _build_sold(self) -> None:
        """One at a time, so that a request's own level is never far back in the line."""
        missing = next((position for position in sorted(self._sold) if position not in self._kept), None)
        if missing is not None and not self._building:
            if (matrix := self._alive.get(missing)) is not None:
                self._use(missing, matrix)
                self._build_sold()
            else:
                self._wished.add(missing)
                self._built(missing)

    def _build(self, position: int | None) -> Tensor:
        device = self._device
        try:
            plain = self._ladder.focus_matrix().T.contiguous() if position is None else self._ladder.matrix(position)
            matrix = plain.to(device)
            if device.type == "cuda":  # another stream will read it
                torch.cuda.current_stream(device).synchronize()
        except BaseException:
            with self._lock:
                self._building.pop(position, None)
            raise
        with self._lock:
            self._building.pop(position, None)
            if device == self._device:
                if position is None:
                    self._focus = matrix
                else:
                    self._alive[position] = matrix
                    if position in self._wished:
                        self._wished.remove(position)
                        self._use(position, matrix)
        return matrix

    def _use(self, position: int, matrix: Tensor) -> None:
        self._kept[position] = matrix
        self._kept.move_to_end(position)
        others = [kept for kept in self._kept if kept not in self._sold]
        for kept in others[: max(0, len(others) - max(1, self._limit // matrix.nbytes))]:  # all are of one size
            del self._kept[kept]


def _done(matrix: Tensor) -> Future[Tensor]:
    future: Future[Tensor] = Future()
    future.set_result(matrix)
    return future
