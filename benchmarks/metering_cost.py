"""What a busy tenant's requests and refusals cost, before and after, in one run: processor time of store and gateway.

Before is an earlier commit of this repository, by default the last with a minute of 61 buckets, taken out of git; after
is the working tree. Each has a Valkey of its own. The tenant has every kind of limit (rpm, tpm, concurrency, quotas of
a day and a month) and has been busy for over a minute, so that its minutes are full; then rounds of the two take turns,
since others may share the processor.

    python -m benchmarks.metering_cost            # about two minutes
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from tenants.store.embedded import EmbeddedValkey

BEFORE = "8ebe698^"
ROOT = Path(__file__).parents[1]
ROUNDS = 5
REQUESTS = 2000
STORM_S = 3.0
STORM_PER_S = 4000
KINDS = {
    "admit": "an admission, 64 at a time",
    "alone": "an admission, one after another",
    "settle": "a settlement, many at a time",
    "storm": f"a storm of {STORM_PER_S} refusals a second",
}


class Side:
    """One tree's code in a process of its own (`metering_cost_side.py`), with a server of its own."""

    def __init__(self, tree: Path, url: str) -> None:
        words = [sys.executable, str(ROOT / "benchmarks" / "metering_cost_side.py"), url]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=tree
        )

    def ask(self, *words: object) -> None:
        pipe: IO[str] = self._process.stdin  # type: ignore[assignment]
        print(*words, file=pipe, flush=True)

    def answer(self) -> dict[str, float]:
        pipe: IO[str] = self._process.stdout  # type: ignore[assignment]
        found: dict[str, float] = json.loads(pipe.readline())
        return found

    def close(self) -> None:
        self._process.communicate()


def tree_of(commit: str, folder: Path) -> Path:
    """The packages of a commit, in a folder."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "tenants", "policies"], capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def measure(sides: dict[str, Side], warm_s: float) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Rounds of each kind, by kind and side; the sides warm up together and are then asked in turns."""
    for side in sides.values():
        side.ask("warm", warm_s)
    for side in sides.values():
        side.answer()
    found: dict[str, dict[str, list[dict[str, float]]]] = {kind: {name: [] for name in sides} for kind in KINDS}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            side.ask("requests", REQUESTS)
            answer = side.answer()
            for kind in ("admit", "alone", "settle"):
                found[kind][name].append(
                    {k.removeprefix(f"{kind}_"): v for k, v in answer.items() if k.startswith(f"{kind}_")}
                )
    for _ in range(2):
        for name, side in sides.items():
            side.ask("storm", STORM_S, STORM_PER_S)
            found["storm"][name].append(side.answer())
    return found


def table(found: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Medians of the rounds, in microseconds a call, and of the storm as a share of the store's one core."""
    lines = ["| | | before | after | ratio |", "|---|---|---|---|---|"]
    rows = [(kind, field, f"{field}, us") for kind in ("admit", "alone", "settle") for field in ("store", "gateway")]
    rows += [("storm", "share", "store's core, %"), ("storm", "gateway", "gateway, us a refusal")]
    for kind, field, label in rows:
        medians = [statistics.median(r[field] for r in found[kind][name]) for name in ("before", "after")]
        lines.append(
            f"| {KINDS[kind]} | {label} | {medians[0]:.1f} | {medians[1]:.1f} | {medians[0] / medians[1]:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help="commit to compare with")
    parser.add_argument("--warm", type=float, default=65.0, help="seconds of load before measuring")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder) / "a") as first:
        with EmbeddedValkey(Path(folder) / "b") as second:
            trees = {"before": (tree_of(options.before, Path(folder) / "tree"), first.url), "after": (ROOT, second.url)}
            sides = {name: Side(*where) for name, where in trees.items()}
            try:
                print(table(measure(sides, options.warm)))
            finally:
                for side in sides.values():
                    side.close()


if __name__ == "__main__":
    main()
