"""A regression run of minutes: the main figures by processor time, as ratios to those recorded of the last release.

Processor time of other machines, and of a busy one, is another: so each figure is divided by that of a yardstick which
runs in the same minutes and never changes (Python's own JSON, or a convolution of torch). A ratio above 1 is slower.

Usage: python -m benchmarks.quick [--rounds 5] [--most 1.3] [--record RELEASE]

It ends with status 1 where a ratio is above `--most`; `--record` writes `benchmarks/recorded.json` instead.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import gateway_cost, replica_cost

RECORDED = Path(__file__).with_name("recorded.json")
AT_ONCE = [1, 8]


def of_python() -> float:
    """Milliseconds that a fixed piece of Python takes."""
    value = {"a": [{"b": at, "c": str(at)} for at in range(400)]}
    began = time.process_time()
    for _ in range(40):
        value = json.loads(json.dumps(value))
        sorted(value["a"], key=lambda one: str(one["c"]))
    return (time.process_time() - began) * 1e3


def of_torch() -> float:
    """Milliseconds that a fixed convolution takes in one thread."""
    torch.set_num_threads(1)
    layer, batch = torch.nn.Conv2d(64, 64, 3, padding=1).requires_grad_(False), torch.zeros(8, 64, 32, 32)
    layer(batch)
    began = time.process_time()
    for _ in range(20):
        layer(batch)
    return (time.process_time() - began) * 1e3


YARDSTICKS: dict[str, Callable[[], float]] = {"python": of_python, "torch": of_torch}


def kind(name: str) -> str:
    """The yardstick of a figure."""
    return "torch" if name.startswith(("engine", "replica")) else "python"


async def figures(rounds: int) -> dict[str, float]:
    """Every figure in units of its yardstick: the median over rounds of the one, over that of the other."""
    values: dict[str, list[float]] = {}
    sticks: dict[str, list[float]] = {name: [] for name in YARDSTICKS}

    def measured() -> None:
        for name, run in YARDSTICKS.items():
            sticks[name] += [run() for _ in range(3)]

    for part in (gateway_cost.measure(rounds, None), replica_cost.measure(rounds, AT_ONCE)):
        measured()
        for name, found in (await part).items():
            values[name] = found
        measured()
    units = {name: statistics.median(found) for name, found in sticks.items()}
    print(", ".join(f"yardstick of {name} {value:.2f} ms" for name, value in units.items()), file=sys.stderr)
    return {name: statistics.median(found) / units[kind(name)] for name, found in values.items()}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=float, default=1.3)
    parser.add_argument("--record", metavar="RELEASE")
    given = parser.parse_args()
    found = asyncio.run(figures(given.rounds))
    if given.record:
        said: dict[str, Any] = {"release": given.record, "machine": platform.platform(), "figures": found}
        RECORDED.write_text(json.dumps(said, indent=2) + "\n")
        return
    recorded = json.loads(RECORDED.read_text())
    print(f"| processor time, over {recorded['release']}'s | ratio |\n|---|---|")
    ratios = {name: value / recorded["figures"][name] for name, value in found.items() if name in recorded["figures"]}
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.2f} |")
    worse = [name for name, ratio in ratios.items() if ratio > given.most]
    if worse:
        sys.exit(f"slower than {recorded['release']} by more than {given.most:g}: {', '.join(worse)}")


if __name__ == "__main__":
    main()
