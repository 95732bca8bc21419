"""How many CPU threads a replica may compute with, decided where it runs."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Threads:
    """What a configuration says of a model's threads.

    Attributes:
        given: so many; None: its share of the cores where its replica runs.
        sharing: models that share those.
    """

    given: int | None
    sharing: int

    def count(self) -> int:
        """Threads on this machine.

        Those of several models on one core spin at each other's barriers: a forward then takes fifty times as long.
        """
        return self.given or max(1, usable_cores() // self.sharing)


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may run on, by its affinity and its container's quota (cgroup v2 or v1); at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, _quota(cgroup))))


def _quota(cgroup: Path) -> float:
    """Cores' worth of time a container gets, endless where nothing is said."""
    try:
        words = (cgroup / "cpu.max").read_text().split()
    except OSError:
        try:
            words = [(cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")]
        except OSError:
            return math.inf
    try:
        quota, period = (float(word) for word in words)
    except ValueError:  # "max"
        return math.inf
    return quota / period if quota > 0.0 and period > 0.0 else math.inf
