"""Tiers and tenants as one YAML file: what differs from the store, and the edits that make it so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from tenants import keyspace, seal
from tenants.admin import TenantAdmin
from tenants.edits import AdminError
from tenants.fields import json_names, listed
from tenants.records import RecordError, parse_tenant, parse_tier
from tenants.store import TenantStore

Fields = dict[str, str]
KINDS = {"tiers": keyspace.TIER, "tenants": keyspace.TENANT}
"""Sections of the file, and the prefix of their records. API keys are not in it: they are made once, and shown once."""


@dataclass(frozen=True, slots=True)
class Step:
    """One edit: a record to create, change or delete, and its fields from old to new (None: there is none)."""

    action: Literal["create", "set", "delete"]
    kind: Literal["tier", "tenant"]
    name: str
    changes: Mapping[str, tuple[str | None, str | None]]


def parse(text: str) -> dict[str, dict[str, Fields]]:
    """Section to name to fields, as Redis holds them. Raises AdminError, which says where the file is wrong."""
    try:
        document = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise AdminError(f"the file is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or set(document) - set(KINDS):
        raise AdminError("the file must hold `tiers:` and `tenants:` and nothing else.")
    wanted: dict[str, dict[str, Fields]] = {}
    for section in KINDS:
        records = document.get(section) or {}
        if not isinstance(records, dict) or not all(isinstance(fields, dict) for fields in records.values()):
            raise AdminError(f"`{section}:` must map each name to its fields.")
        wanted[section] = {
            str(name): {str(field): _text(section, name, field, value) for field, value in fields.items()}
            for name, fields in records.items()
        }
    for name, fields in wanted["tenants"].items():
        fields.setdefault("name", name)
        fields.setdefault("status", "active")
    _validate(wanted)
    return wanted


def _validate(wanted: Mapping[str, Mapping[str, Fields]]) -> None:
    for section, parser in (("tiers", parse_tier), ("tenants", parse_tenant)):
        for name, fields in wanted[section].items():
            if not keyspace.is_name(name):
                raise AdminError(f"{section}: '{name}' is no name; use letters, digits, '.', '_' and '-', 64 at most.")
            if seal.FIELD in fields:
                raise AdminError(f"{section}.{name}.{seal.FIELD}: is written by this command itself.")
            parser(name, {field.encode(): value.encode() for field, value in fields.items()})


def _text(section: str, name: Any, field: Any, value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value)
        case list() if all(isinstance(part, str) for part in value):
            return listed(value)
    raise AdminError(f"{section}.{name}.{field}: expected a text, a number, true, false or a list of names.")


async def current(store: TenantStore, admin: TenantAdmin) -> dict[str, dict[str, Fields]]:
    """What the store holds, in the form of `parse`; fields that are no text are shown with replacement characters."""
    found: dict[str, dict[str, Fields]] = {}
    for section, prefix in KINDS.items():
        names = await admin.names(prefix)
        raws = await store.try_hashes([prefix + name for name in names])
        found[section] = {
            name: {
                f.decode("utf-8", "replace"): v.decode("utf-8", "replace")
                for f, v in sorted(raw.items())
                if f != seal.FIELD.encode()
            }
            for name, raw in zip(names, raws, strict=True)
            if not isinstance(raw, RecordError)
        }
    return found


def export(records: Mapping[str, Mapping[str, Fields]]) -> str:
    """The file that `parse` reads back to these records."""
    document = {
        section: {
            name: {field: _scalar(value) for field, value in sorted(fields.items())} for name, fields in r.items()
        }
        for section, r in records.items()
    }
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def _scalar(text: str) -> Any:
    """A number where its text comes back the same, a list where it is one of names that hold commas, else the text."""
    if text.startswith("["):
        try:
            names = json_names(text)
        except ValueError:
            return text
        return names if listed(names) == text else text
    for kind in (int, float):
        try:
            if str(kind(text)) == text:
                return kind(text)
        except ValueError:
            pass
    return text


def plan(
    wanted: Mapping[str, Mapping[str, Fields]], there: Mapping[str, Mapping[str, Fields]], *, prune: bool = False
) -> list[Step]:
    """The steps from the store's records to the file's; with `prune`, records that the file lacks are deleted."""
    missing = {f["tier"] for f in wanted["tenants"].values()} - wanted["tiers"].keys() - there["tiers"].keys()
    if missing:
        raise AdminError(f"there is no tier '{min(missing)}', neither in the file nor in the store.")
    steps = [
        step
        for section, kind in (("tiers", "tier"), ("tenants", "tenant"))
        for name, fields in wanted[section].items()
        if (step := _step(kind, name, fields, there[section].get(name))) is not None  # type: ignore[arg-type]
    ]
    if prune:  # a tier goes last, since it must have no tenants then
        for section, kind in (("tenants", "tenant"), ("tiers", "tier")):
            for name, fields in there[section].items():
                if name not in wanted[section]:
                    steps.append(Step("delete", kind, name, {f: (v, None) for f, v in fields.items()}))  # type: ignore[arg-type]
    return steps


def _step(kind: Literal["tier", "tenant"], name: str, fields: Fields, old: Fields | None) -> Step | None:
    before = old or {}
    changes = {
        field: (before.get(field), fields.get(field))
        for field in sorted({*before, *fields})
        if before.get(field) != fields.get(field)
    }
    if not changes:
        return None
    return Step("set" if old else "create", kind, name, changes)


async def apply(admin: TenantAdmin, steps: list[Step]) -> None:
    """Do the steps, each validated, written and audited like an edit by hand."""
    for step in steps:
        changes = {field: new for field, (_, new) in step.changes.items()}
        match step.action, step.kind:
            case "create", "tier":
                await admin.create_tier(step.name, changes)
            case "set", "tier":
                await admin.set_tier(step.name, changes)
            case "create", "tenant":
                await admin.create_tenant(step.name, tier=changes["tier"] or "", fields=changes)
            case "set", "tenant":
                await admin.set_tenant(step.name, changes)
            case "delete", "tier":
                await admin.delete_tier(step.name)
            case _:
                await admin.delete_tenant(step.name)
