"""Usage for people and for programs: tables, CSV and JSON."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict

from tenants.command.show import print_json, print_table
from tenants.metering.usage import COUNTERS, Usage

WHAT = ("model", "level", "tier", "key")
Counts = Mapping[str, int]


def usage(periods: Iterable[Usage], as_json: bool, as_csv: bool = False) -> None:
    """Table, CSV or JSON of usage; days without any are left out of table and CSV."""
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("period", *WHAT, *COUNTERS))
        for period in periods:
            writer.writerows((period.period, *what, *counts) for what, counts in _finest(period))
        return None
    if as_json:
        return print_json([asdict(period) for period in periods])
    rows: list[tuple[str, ...]] = []
    used = [period for period in periods if any(period.total.values())]
    for period in used:
        rows.append((period.period, "all", "", "", *_words(period.total)))
        for model, counts in sorted(period.by_model.items()):
            levels = _by_level(period, model)
            if len(levels) == 1:
                ((level, tier),) = levels
                rows.append(("", model, level, tier, *_words(counts)))
            else:
                rows.append(("", model, "", "", *_words(counts)))
                rows += [("", "", level, tier, *_words(own)) for (level, tier), own in levels.items()]
    if len(used) > 1:
        total = {name: sum(period.total[name] for period in used) for name in COUNTERS}
        rows.append(("total", "all", "", "", *_words(total)))
    print_table(("period", "model", "level", "tier", *(name.replace("_", " ") for name in COUNTERS)), rows)


def _words(counts: Counts) -> tuple[str, ...]:
    return tuple(str(counts[name]) for name in COUNTERS)


def _by_level(period: Usage, model: str) -> dict[tuple[str, str], dict[str, int]]:
    """What was sold of a model, by level and tier, the best level first."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for own in sorted(period.sold, key=lambda own: (-float(own.level), own.tier)):
        if own.model == model:
            counts = found.setdefault((own.level, own.tier), dict.fromkeys(COUNTERS, 0))
            for name in COUNTERS:
                counts[name] += own.counts[name]
    return found


def _finest(period: Usage) -> Iterator[tuple[tuple[str, ...], list[int]]]:
    """What was sold, and of each model what is known of it alone: refusals, and usage from before levels were kept."""
    for model, counts in sorted(period.by_model.items()):
        sold = [own for own in period.sold if own.model == model]
        for own in sold:
            yield (own.model, own.level, own.tier, own.key), [own.counts[name] for name in COUNTERS]
        rest = [counts[name] - sum(own.counts[name] for own in sold) for name in COUNTERS]
        if any(rest):
            yield (model, "", "", ""), rest
