"""What attackers win back of the 0.7 level's gap (clean accuracy less the level's), by source of noise.

Features of all queries are computed once and kept in the cache folder; what follows is arithmetic on them.

Usage: python -m benchmarks.attacks labels --cifar DIR [--cache DIR] [--secrets N]
       python -m benchmarks.attacks masks --camvid DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.attacks import labels, masks


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("labels", "masks"))
    parser.add_argument("--cifar", type=Path, help="folder that holds train/<class>/*.jpg")
    parser.add_argument("--camvid", type=Path, help="folder that holds val/images and val/labels")
    parser.add_argument("--cache", type=Path, default=Path(".data/attacks"), help="folder to keep features in")
    parser.add_argument("--secrets", type=int, default=6, help="noise secrets to measure under")
    parser.add_argument("--threads", type=int, default=1, help="threads to compute with")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure, root = {"labels": (labels.measure, arguments.cifar), "masks": (masks.measure, arguments.camvid)}[
        arguments.task
    ]
    if root is None:
        parser.error("labels needs --cifar, masks --camvid")
    print(measure(root, arguments.cache, arguments.secrets).table())


if __name__ == "__main__":
    main()
