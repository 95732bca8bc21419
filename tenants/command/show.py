"""Records for people and for programs: the tables and the JSON of the `tenants` command."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from policies.audit import LevelReport, Tally
from tenants.admin import views
from tenants.admin.manifest import Step
from tenants.admin.operators import Operator
from tenants.records.fields import iso
from tenants.records.hashes import dump_project, dump_tenant, dump_terms
from tenants.records.prices import Plan
from tenants.records.schema import KeyRecord, ProjectRecord, RecordError, TenantRecord, TierRecord
from tenants.reports.jobs import BEFORE, Job
from tenants.reports.levels import ServedLevels, level_fields


def tenants(records: Mapping[str, TenantRecord | RecordError], as_json: bool) -> None:
    """Table or JSON of tenants; a broken record is shown as such."""
    if as_json:
        return print_json(
            [
                views.tenant_fields(record) if isinstance(record, TenantRecord) else views.broken(record)
                for record in records.values()
            ]
        )
    rows = []
    for tenant_id, record in records.items():
        if isinstance(record, RecordError):
            rows.append((tenant_id, "", "", "invalid", f"{record.field}: {record.problem}"))
        else:
            overrides = ", ".join(f"{name}={value}" for name, value in dump_terms(record.overrides).items())
            rows.append((record.id, record.name, record.tier, record.status, overrides))
    print_table(("tenant", "name", "tier", "status", "overrides"), rows)


def tenant(record: TenantRecord, as_json: bool) -> None:
    """One tenant, field by field."""
    print_json(views.tenant_fields(record)) if as_json else print_table(
        ("field", record.id), dump_tenant(record).items()
    )


def tiers(records: Mapping[str, TierRecord | RecordError], as_json: bool) -> None:
    """Table or JSON of tiers."""
    if as_json:
        return print_json(
            [
                views.tier_fields(record) if isinstance(record, TierRecord) else views.broken(record)
                for record in records.values()
            ]
        )
    rows = []
    for name, record in records.items():
        if isinstance(record, RecordError):
            rows.append((name, "invalid", f"{record.field}: {record.problem}"))
        else:
            fields = dump_terms(record.terms)
            utility = fields.pop("utility")
            rows.append((name, utility, ", ".join(f"{name}={value}" for name, value in fields.items())))
    print_table(("tier", "utility", "terms"), rows)


def tier(record: TierRecord, as_json: bool) -> None:
    """One tier, field by field."""
    print_json(views.tier_fields(record)) if as_json else print_table(
        ("field", record.name), dump_terms(record.terms).items()
    )


def plans(records: Mapping[str, Plan | RecordError], as_json: bool) -> None:
    """Table or JSON of versions of plans."""
    found = [plan if isinstance(plan, RecordError) else views.plan_fields(plan) for plan in records.values()]
    if as_json:
        return print_json([views.broken(own) if isinstance(own, RecordError) else own for own in found])
    rows = []
    for name, own in zip(records, found, strict=True):
        if isinstance(own, RecordError):
            rows.append((name, "invalid", f"{own.field}: {own.problem}"))
        else:
            own.pop("plan")
            rows.append((name, own.pop("currency", ""), ", ".join(f"{field}={value}" for field, value in own.items())))
    print_table(("plan", "currency", "prices in millionths"), rows)


def projects(records: Mapping[str, ProjectRecord | RecordError], as_json: bool) -> None:
    """Table or JSON of projects."""
    if as_json:
        return print_json(
            [views.broken(r) if isinstance(r, RecordError) else views.project_fields(r) for r in records.values()]
        )
    rows = []
    for name, record in records.items():
        if isinstance(record, RecordError):
            rows.append((name, f"invalid: {record.field}: {record.problem}"))
        else:
            rows.append((name, ", ".join(f"{field}={value}" for field, value in dump_project(record).items())))
    print_table(("project", "limits"), rows)


def keys(records: Mapping[str, KeyRecord | RecordError], as_json: bool, most_days: int | None = None) -> None:
    """Table or JSON of keys, the newest first."""
    found = sorted(
        (record for record in records.values() if isinstance(record, KeyRecord)),
        key=lambda own: -(own.created_at or 0.0),
    )
    broken = [record for record in records.values() if isinstance(record, RecordError)]
    if as_json:
        return print_json(
            [*(views.key(record, most_days) for record in found), *(views.broken_key(error) for error in broken)]
        )
    # Days are enough for people; --json has the seconds.
    moments = [[views.moment(m)[:10] for m in (own.expires_at, own.last_used)] for own in found]
    rows = [
        (own.id, own.prefix, _status(own, most_days), *times, own.label, _terms(own))
        for own, times in zip(found, moments, strict=True)
    ]
    rows += [(views.key_id(error), "", "invalid", "", "", "", f"{error.field}: {error.problem}") for error in broken]
    print_table(("id", "prefix", "status", "expires", "last used", "label", "scopes and limits"), rows, whole=5)


def _status(own: KeyRecord, most_days: int | None) -> str:
    return f"{views.key_status(own)}, rotate" if own.old(time.time(), most_days) else views.key_status(own)


def operators(found: Mapping[str, Operator], as_json: bool) -> None:
    """Table or JSON of admin keys."""
    if as_json:
        return print_json([views.operator(own) for own in found.values()])
    rows = [
        (own.id, own.name, own.role, views.operator_status(own), views.moment(own.expires_at)[:10], own.prefix)
        for own in found.values()
    ]
    print_table(("id", "name", "role", "status", "expires", "prefix"), rows)


def audit(entries: Iterable[Mapping[str, Any]], as_json: bool) -> None:
    """Table or JSON of changes."""
    if as_json:
        return print_json([{**entry, "time": iso(entry["time"])} for entry in entries])
    names = ("who", "action", "subject")
    rows = ((iso(e["time"]), *(str(e.get(n, "")) for n in names), _changes(e)) for e in entries)
    print_table(("time", *names, "changes"), rows)


def _changes(entry: Mapping[str, Any]) -> str:
    changes = entry.get("changes")
    pairs = changes.items() if isinstance(changes, dict) else ()
    said = [f"{name}: {_new(*change)}" for name, change in pairs if isinstance(change, list) and len(change) == 2]
    return ", ".join([*said, *([str(entry["detail"])] if entry.get("detail") else [])])


def _new(old: object, new: object) -> str:
    return f"{new}" if old is None else f"{old} (removed)" if new is None else f"{old} → {new}"


def schedule(changes: Iterable[tuple[float, str, str, str | None]], as_json: bool) -> None:
    """Table or JSON of changes to come."""
    rows = [(iso(at), whose, field, value) for at, whose, field, value in changes]
    if as_json:
        return print_json([dict(zip(("time", "record", "field", "value"), row, strict=True)) for row in rows])
    print_table(("time", "record", "field", "value"), [(*row[:3], row[3] or "(removed)") for row in rows])


def steps(planned: Iterable[Step], as_json: bool) -> None:
    """What `tenants apply` will do, field by field."""
    if as_json:
        return print_json([asdict(step) for step in planned])
    signs = {"create": ("+", "green"), "set": ("~", "yellow"), "delete": ("-", "red")}
    console = Console(highlight=False)
    empty = True
    for step in planned:
        empty = False
        sign, colour = signs[step.action]
        console.print(f"{sign} {step.kind} {step.name}", style=colour, markup=False)
        for field, (old, new) in step.changes.items():
            change = f"{old} → {new}" if old and new else f"{new}" if new is not None else f"{old} (removed)"
            console.print(f"    {field}: {change}", markup=False)
    if empty:
        console.print("Nothing to change.")


def levels(found: Mapping[str, Sequence[ServedLevels]], as_json: bool) -> None:
    """Every level in use, sold against delivered, with standard errors; replicas of one calibration together."""
    if as_json:
        fields = {model: [level_fields(g, own) for g in groups for own in g.levels] for model, groups in found.items()}
        return print_json(fields)
    rows, notes = [], []
    for model, groups in found.items():
        for group in groups:
            notes += [f"{model}: {group.note}"] if group.note else []
            rows += [
                (model, f"{own.level:g}", _tally(own.delivered), _tally(own.expected), own.state.value, str(group))
                for own in group.levels
            ]
            if not group.levels:
                rows.append((model, "", "", "", "no level below 1 in use", str(group)))
    print_table(("model", "sold", "delivered lately", "expected on live inputs", "state", "served by"), rows)
    print("\n".join(notes), end="\n" if notes else "")


def drift(model: str, group: ServedLevels, own: LevelReport) -> str:
    """One line on a level that has drifted."""
    where = "" if group.alone else f" ({group})"
    return (
        f"{model} at {own.level:g}{where}: delivers {_tally(own.evidence)}; it has drifted, see `tenants levels` and"
        f" `tenants calibrate {model}`{f' ({group.note})' if group.note else ''}"
    )


def calibrated(job: Job, replicas: int, as_json: bool) -> None:
    """What a refit did."""
    if as_json:
        fields = {"model": job.model, "source": job.source, "answers": job.answers, "replicas": replicas}
        fields |= {"tenants": job.tenants, "left_out": job.left_out, "capped": job.capped} if job.tenants else {}
        return print_json(
            fields | {"levels": {x: {"before": job.before[x], "after": job.after.get(x)} for x in job.before}}
        )
    served = "1 replica has" if replicas == 1 else f"{replicas} replicas have"
    if job.source == BEFORE:
        print(f"Put back the calibration of {job.model} that the last refit replaced; {served} it.")
    else:
        print(f"Calibrated {job.model} on {job.answers:,} answers{_tenants(job)}; {served} it.")
    if job.before:
        print("On live inputs that it was not solved on:")
    for level in sorted(job.before, key=float):
        print(f"  {level}: {job.before[level]:.3f} before, {job.after.get(level, 1.0):.3f} now")
    return None


def _tenants(job: Job) -> str:
    """On whose live rows a refit was solved."""
    if not job.tenants:
        return ""
    of = f" of {job.tenants} tenant" + "s" * (job.tenants > 1)
    left = ", one left out since it moved a level for the others too far" if job.left_out else ""
    return of + left + ("" if job.capped else " (too few to bound what one of them moves)")


def _tally(tally: Tally) -> str:
    return f"{tally.level:.3f} ± {tally.error:.3f} ({tally.groups:,})" if tally.groups else ""


def done(value: Any, sentence: str, as_json: bool) -> None:
    """The outcome of a command: JSON, or a sentence."""
    print_json(value) if as_json else print(sentence)


def _terms(record: KeyRecord) -> str:
    scopes = [] if record.scopes is None else sorted(record.scopes)
    return ", ".join([*scopes, *(f"{name}={limit}" for name, limit in views.limits(record).items())])


def print_json(value: Any) -> None:
    """JSON on the standard output."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]], whole: int = 2) -> None:
    """A table on the standard output; its first `whole` columns are not even wrapped."""
    table = Table(*columns, box=SIMPLE_HEAD)
    for number, column in enumerate(table.columns):
        # Nothing is shortened, and what a person copies is not even wrapped.
        column.no_wrap, column.overflow = number < whole, "fold"
    for row in rows:
        # Text of a record is not markup.
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 1000  # for grep and the like, which count on whole lines
    console.print(table if table.row_count else "Nothing to show.")
