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


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("labels", "masks", "text", "frontier", "extraction"))
    parser.add_argument("--cifar", type=Path, help="folder that holds train/<class>/*.jpg")
    parser.add_argument("--camvid", type=Path, help="folder that holds images and labels under train and val")
    parser.add_argument("--cache", type=Path, default=Path(".data/attacks"), help="folder to keep features in")
    parser.add_argument("--secrets", type=int, default=6, help="noise secrets to measure under")
    parser.add_argument("--plot", type=Path, help="where to draw the frontier")
    parser.add_argument("--threads", type=int, default=1, help="threads to compute with")
    parser.add_argument("--level", type=float, default=labels.LEVEL, help="labels, masks: the level under attack")
    names = {"labels": labels.ROWS, "masks": masks.ROWS, "text": text.ROWS}
    told = "; ".join(f"{task}: {', '.join(rows)}" for task, rows in names.items())
    parser.add_argument("--rows", nargs="+", help=f"which attacks, of labels and masks one of these. {told}")
    parser.add_argument("--encoder", type=Path, help="folder of the foreign encoder's packages, if pip has not them")
    arguments = parser.parse_args()
    known = names.get(arguments.task, ())
    if unknown := set(arguments.rows or ()) - set(known):
        parser.error(f"{arguments.task} has no rows '{sorted(unknown)[0]}'; it has: {', '.join(known) or 'none'}")
    if arguments.task != "text" and len(arguments.rows or ()) > 1:
        parser.error(f"{arguments.task} takes one of its rows at a time")
    rows = arguments.rows[0] if arguments.rows else "all"
    if arguments.plot and arguments.task != "frontier":
        parser.error("--plot draws the frontier only")
    if arguments.encoder:
        sys.path.append(str(arguments.encoder))
    torch.set_num_threads(arguments.threads)
    cache, secrets = arguments.cache, arguments.secrets
    if arguments.task == "text":
        records = text.measure(cache, secrets, arguments.rows or text.ROWS)
    elif arguments.task == "masks":
        root = arguments.camvid or parser.error("masks needs --camvid")
        records = masks.measure(root, cache, secrets, arguments.level, rows)
    elif arguments.task == "frontier" and arguments.camvid:
        records = mask_frontier.measure(arguments.camvid, cache, secrets)
    elif arguments.task == "extraction":
        from benchmarks.attacks import extraction  # ART takes a minute to load

        records = extraction.measure(arguments.cifar or parser.error("extraction needs --cifar"), cache, secrets)
    elif arguments.task == "frontier":
        records = frontier.measure(
            arguments.cifar or parser.error("frontier needs --cifar or --camvid"), cache, secrets
        )
    else:
        root = arguments.cifar or parser.error("labels needs --cifar")
        records = labels.measure(root, cache, secrets, arguments.level, rows)
    if arguments.plot:
        frontier.draw(records, arguments.plot, mask_frontier.MASKS if arguments.camvid else frontier.LABELS)
    print(records.table())


if __name__ == "__main__":
    main()
