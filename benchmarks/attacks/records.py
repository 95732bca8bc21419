"""What was won back, by attack, source of noise and secret, and the table of it."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Records:
    """Shares won back; written to a file after every secret."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, list[float]]] = {}
        self._began = time.perf_counter()

    def add(self, attack: str, source: str, share: float) -> None:
        """One measurement."""
        self.values.setdefault(attack, {}).setdefault(source, []).append(share)

    def run(self, source: str, attacks: dict[str, Callable[[], float]]) -> None:
        """Carry out attacks on one source under one secret."""
        for name, attack in attacks.items():
            self.add(name, source, attack())
        print(f"  {source}: {time.perf_counter() - self._began:.0f} s", file=sys.stderr, flush=True)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(self.values, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Records:
        """Read what `save` wrote."""
        records = cls()
        records.values = json.loads(path.read_text())
        return records

    def table(self) -> str:
        """Markdown: a row an attack, a column a source, mean ± standard deviation over secrets."""
        sources = list(dict.fromkeys(source for row in self.values.values() for source in row))
        lines = ["| attack | " + " | ".join(sources) + " |", "|---" * (len(sources) + 1) + "|"]
        for attack, row in self.values.items():
            lines.append(f"| {attack} | " + " | ".join(_cell(row.get(source, [])) for source in sources) + " |")
        return "\n".join(lines)


def mean(values: list[float]) -> float:
    """Over secrets."""
    return statistics.mean(values)


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values) + 0.0:.2f}{spread}".replace("-0.00", "0.00")
