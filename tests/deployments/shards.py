"""How much of the matrix of architectures a run takes: a quarter, unless MATRIX says otherwise (`make matrix`: all)."""

from __future__ import annotations

import os
from collections.abc import Iterable


def shard(names: Iterable[str]) -> list[str]:
    """Every fourth name from the first on, or as MATRIX says: "2/3" is every third from the second on."""
    part, _, parts = os.environ.get("MATRIX", "1/4").partition("/")
    return list(names)[int(part) - 1 :: int(parts)]
