"""What attackers win back of a level's gap (clean accuracy less the level's), by source of noise.

Features of all queries are computed once and kept in the cache folder; what follows is arithmetic on them.

Usage: python -m benchmarks.attacks labels --cifar DIR [--cache DIR] [--secrets N]
       python -m benchmarks.attacks masks --camvid DIR [--level 0.9] [--rows students] [--encoder DIR]
       python -m benchmarks.attacks text [--rows votes correctors logits students choice cost]
       python -m benchmarks.attacks extraction --cifar DIR
       python -m benchmarks.attacks frontier --cifar DIR | --camvid DIR [--plot OUT.png]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.attacks import frontier, labels, mask_frontier, masks, text
from benchmarks.attacks.records import Records

ROWS = {"labels": labels.ROWS, "masks": masks.ROWS, "text": text.ROWS}


def main() -> None:
    """Measure and print a Markdown table."""
    arguments = parsed()
    if arguments.encoder:
        sys.path.append(str(arguments.encoder))
    torch.set_num_threads(arguments.threads)
    records = measured(arguments)
    if arguments.plot:
        frontier.draw(records, arguments.plot, mask_frontier.MASKS if arguments.camvid else frontier.LABELS)
    print(records.table())


def parsed() -> argparse.Namespace:
    """What was asked for, checked; mistakes end the command with one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("labels", "masks", "text", "frontier", "extraction"))
    parser.add_argument("--cifar", type=Path, help="folder that holds train/<class>/*.jpg")
    parser.add_argument("--camvid", type=Path, help="folder that holds images and labels under train and val")
    parser.add_argument("--cache", type=Path, default=Path(".data/attacks"), help="folder to keep features in")
    parser.add_argument("--secrets", type=int, default=6, help="noise secrets to measure under")
    parser.add_argument("--plot", type=Path, help="where to draw the frontier")
    parser.add_argument("--threads", type=int, default=1, help="threads to compute with")
    parser.add_argument("--level", type=float, default=labels.LEVEL, help="labels, masks: the level under attack")
    told = "; ".join(f"{task}: {', '.join(rows)}" for task, rows in ROWS.items())
    parser.add_argument("--rows", nargs="+", help=f"which attacks, of labels and masks one of these. {told}")
    parser.add_argument("--encoder", type=Path, help="folder of the foreign encoder's packages, if pip has not them")
    arguments = parser.parse_args()
    task, known, rows = arguments.task, ROWS.get(arguments.task, ()), arguments.rows or ()
    if unknown := set(rows) - set(known):
        parser.error(f"{task} has no rows '{sorted(unknown)[0]}'; it has: {', '.join(known) or 'none'}")
    if task != "text" and len(rows) > 1:
        parser.error(f"{task} takes one of its rows at a time")
    if arguments.plot and task != "frontier":
        parser.error("--plot draws the frontier only")
    needs = {"labels": "cifar", "extraction": "cifar", "masks": "camvid"}.get(task)
    if needs and getattr(arguments, needs) is None:
        parser.error(f"{task} needs --{needs}")
    if task == "frontier" and not (arguments.cifar or arguments.camvid):
        parser.error("frontier needs --cifar or --camvid")
    return arguments


def measured(arguments: argparse.Namespace) -> Records:
    """Run one task."""
    cache, secrets, rows = arguments.cache, arguments.secrets, arguments.rows or ()
    one = rows[0] if rows else "all"
    if arguments.task == "text":
        return text.measure(cache, secrets, rows or text.ROWS)
    if arguments.task == "masks":
        return masks.measure(arguments.camvid, cache, secrets, arguments.level, one)
    if arguments.task == "labels":
        return labels.measure(arguments.cifar, cache, secrets, arguments.level, one)
    if arguments.task == "extraction":
        from benchmarks.attacks import extraction  # ART takes a minute to load

        return extraction.measure(arguments.cifar, cache, secrets)
    if arguments.camvid:
        return mask_frontier.measure(arguments.camvid, cache, secrets)
    return frontier.measure(arguments.cifar, cache, secrets)


if __name__ == "__main__":
    main()
