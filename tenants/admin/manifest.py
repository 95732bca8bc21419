"""Tiers and tenants as one YAML file: what differs from the store, and the edits that make it so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from tenants.admin.admin import TenantAdmin
from tenants.changes import edits
from tenants.changes.edits import AdminError, Conflict
from tenants.records import completeness, keyspace, schedule
from tenants.records.fields import json_names, listed
from tenants.records.hashes import RawHash, parse_project, parse_tenant, parse_tier
from tenants.records.prices import Plan, parse_plan

Fields = dict[str, str]
Kind = Literal["plan", "tier", "project", "tenant"]
KINDS = {
    "plans": keyspace.PLAN,
    "tiers": keyspace.TIER,
    "projects": keyspace.PROJECT,
    "tenants": keyspace.TENANT,
}
"""Sections of the file, and the prefix of their records. A plan's name is its newest version.
API keys are not in it: they are made once, and shown once."""


@dataclass(frozen=True, slots=True)
class Step:
    """One edit: a record to create, change or delete, and its fields from old to new (None: there is none).

    Attributes:
        version: of the record that it was planned on; another one is not overwritten.
    """

    action: Literal["create", "set", "delete"]
    kind: Kind
    name: str
    changes: Mapping[str, tuple[str | None, str | None]]
    version: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """Tiers and tenants as the store has them, in the form of `parse`, and their versions by Redis key."""

    records: Mapping[str, Mapping[str, Fields]]
    versions: Mapping[str, str]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """YAML whose scalars are the texts that stand there: `no` may be a tenant, 0123 a label, 1.10 a name."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for name in names:
            if not isinstance(name, str):
                raise AdminError(f"line {node.start_mark.line + 1}: expected a name before ':', not {name!r}.")
            if names.count(name) > 1:
                raise AdminError(f"line {node.start_mark.line + 1}: '{name}' stands there twice.")
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


for _kind in ("bool", "int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_scalar)
_YES_OR_NO = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
_SWITCHES = ("logprobs", "lower_utility", "focus_locked")


def parse(text: str) -> dict[str, dict[str, Fields]]:
    """Section to name to fields, as Redis holds them. Raises AdminError, which says where the file is wrong."""
    try:
        return read(yaml.load(text, Loader=_Loader) or {})
    except yaml.YAMLError as error:
        raise AdminError(f"the file is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise AdminError("the file is not YAML of tiers and tenants: it is nested too deeply.") from None


def read(document: Any) -> dict[str, dict[str, Fields]]:
    """As `parse`, of a document that is read already: two levels of names, then texts, numbers and lists of texts."""
    if not isinstance(document, dict) or set(document) - set(KINDS):
        raise AdminError("the file must hold `plans:`, `tiers:`, `projects:` and `tenants:` and nothing else.")
    wanted: dict[str, dict[str, Fields]] = {}
    for section in KINDS:
        records = document.get(section) or {}
        if not isinstance(records, dict) or not all(isinstance(fields, dict) for fields in records.values()):
            raise AdminError(f"`{section}:` must map each name to its fields.")
        wanted[section] = {
            name: {field: _text(section, name, field, value) for field, value in fields.items()}
            for name, fields in records.items()
        }
    for name, fields in wanted["tenants"].items():
        fields.setdefault("name", name)
    _validate(wanted)
    return wanted


def _validate(wanted: Mapping[str, Mapping[str, Fields]]) -> None:
    parsers = (
        ("plans", _parse_plan),
        ("tiers", parse_tier),
        ("projects", parse_project),
        ("tenants", parse_tenant),
    )
    for section, parser in parsers:
        for name, fields in wanted[section].items():
            if not (keyspace.is_name(name) or (section == "plans" and keyspace.is_plan(name))):
                raise AdminError(f"{section}: '{name}' is no name; use letters, digits, '.', '_' and '-', 64 at most.")
            if completeness.FIELD in fields:
                raise AdminError(f"{section}.{name}.{completeness.FIELD}: is written by this command itself.")
            try:
                parser(name, {field.encode(): value.encode() for field, value in fields.items()})
            except UnicodeEncodeError:
                raise AdminError(f"{section}.{name}: holds what UTF-8 cannot.") from None


def _parse_plan(name: str, raw: RawHash) -> Plan:
    return parse_plan(name if "@" in name else f"{name}@1", raw)


def _text(section: str, name: str, field: str, value: Any) -> str:
    match value:
        case str() if field in _SWITCHES:
            return _YES_OR_NO.get(value.lower(), value)
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value)
        case list() if all(isinstance(part, str) for part in value):
            return listed(value)
    raise AdminError(f"{section}.{name}.{field}: expected a text, a number, true, false or a list of names.")


async def current(admin: TenantAdmin) -> Stored:
    """What the store holds; fields that are no text are shown with escapes, and what is no hash is left out."""
    found: dict[str, dict[str, Fields]] = {}
    versions: dict[str, str] = {}
    for section, prefix in KINDS.items():
        found[section] = {}
        for record in await admin.all_found(prefix):
            if record.raw:
                texts = sorted(schedule.folded(edits.texts(record.raw)).items())
                found[section][record.key.removeprefix(prefix)] = {f: v for f, v in texts if f != completeness.FIELD}
                versions[record.key] = record.version
    return Stored(found, versions)


def export(records: Mapping[str, Mapping[str, Fields]]) -> str:
    """The file that `parse` reads back to these records."""
    document = {
        section: {
            name: {field: _scalar(value) for field, value in sorted(fields.items())} for name, fields in r.items()
        }
        for section, r in records.items()
        if r or section not in ("plans", "projects")
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


def plan(wanted: Mapping[str, Mapping[str, Fields]], stored: Stored, *, prune: bool = False) -> list[Step]:
    """The steps from the store's records to the file's; with `prune`, records that the file lacks are deleted.

    A tenant whose file says nothing of its status or its plan keeps what it has.
    """
    kept = {name for name in wanted["plans"] if "@" not in name}
    wanted = {**wanted, "plans": _versions(wanted["plans"], stored.records["plans"])}
    there = stored.records
    missing = {f["tier"] for f in wanted["tenants"].values()} - wanted["tiers"].keys() - there["tiers"].keys()
    if missing:
        raise AdminError(f"there is no tier '{min(missing)}', neither in the file nor in the store.")
    named = {f["project"] for f in wanted["tenants"].values() if f.get("project")}
    if missing := named - wanted["projects"].keys() - there["projects"].keys():
        raise AdminError(f"there is no project '{min(missing)}', neither in the file nor in the store.")
    steps = [
        step
        for section in KINDS
        for name, fields in wanted[section].items()
        if (step := _step(section, name, fields, stored)) is not None
    ]
    if prune:  # a tier goes last, since it must have no tenants then
        for section in reversed(KINDS):
            if section == "plans" and not wanted[section]:
                continue  # a file of before there were any
            for name, fields in there[section].items():
                if name not in wanted[section] and name.partition("@")[0] not in kept:
                    gone = {f: (v, None) for f, v in fields.items()}
                    steps.append(Step("delete", _kind_of(section), name, gone, stored.versions[KINDS[section] + name]))
    return steps


def _step(section: str, name: str, fields: Fields, stored: Stored) -> Step | None:
    old = stored.records[section].get(name)
    before = old or {}
    if section == "tenants" and "status" not in fields:
        fields = {**fields, "status": before.get("status", "active")}
    if section == "tenants" and not any(schedule.subject(field) == "plan" for field in fields):
        fields = {**fields, **{field: text for field, text in before.items() if schedule.subject(field) == "plan"}}
    changes = {
        field: (before.get(field), fields.get(field))
        for field in sorted({*before, *fields})
        if before.get(field) != fields.get(field)
    }
    if not changes:
        return None
    version = stored.versions.get(KINDS[section] + name, "")
    return Step("set" if old else "create", _kind_of(section), name, changes, version)


def _versions(wanted: Mapping[str, Fields], stored: Mapping[str, Fields]) -> dict[str, Fields]:
    """Plans by version: of a name its newest where that says the same, else the next.

    Raises AdminError where a version that there is should be changed.
    """
    found: dict[str, Fields] = {}
    for name, fields in wanted.items():
        if "@" in name and stored.get(name, fields) != fields:
            base = name.partition("@")[0]
            raise AdminError(f"plans.{name}: a version is not changed; write '{base}' without '@' to make a new one.")
        if "@" in name:
            found[name] = fields
            continue
        same = [own for own in (*stored, *wanted) if own.startswith(f"{name}@")]
        newest = max((int(own.partition("@")[2]) for own in same if keyspace.is_plan(own)), default=0)
        last = {**stored, **wanted}.get(f"{name}@{newest}")
        found[f"{name}@{newest if last == fields else newest + 1}"] = fields
    return found


def _kind_of(section: str) -> Kind:
    kinds: dict[str, Kind] = {"plans": "plan", "tiers": "tier", "projects": "project", "tenants": "tenant"}
    return kinds[section]


async def apply(admin: TenantAdmin, steps: list[Step]) -> None:
    """Do the steps, each validated, written and audited like an edit by hand.

    Raises:
        Conflict: a record was changed since the steps were planned; it and those after it are left as they are.
    """
    for done, step in enumerate(steps):
        try:
            await _do(admin, step)
        except Conflict as error:
            raise Conflict(
                f"{error} {done} of {len(steps)} changes are made; apply the file again for the rest."
            ) from None


async def _do(admin: TenantAdmin, step: Step) -> None:
    changes = {field: new for field, (_, new) in step.changes.items()}
    match step.action, step.kind:
        case _, "plan":
            if step.action == "delete":
                await admin.delete_plan(step.name, expect=step.version)
            else:
                await admin.create_plan(step.name, changes)
        case "create", "tier":
            await admin.create_tier(step.name, changes)
        case "set", "tier":
            await admin.set_tier(step.name, changes, expect=step.version)
        case "create", "project":
            await admin.create_project(step.name, changes)
        case "set", "project":
            await admin.set_project(step.name, changes, expect=step.version)
        case "delete", "project":
            await admin.delete_project(step.name, expect=step.version)
        case "create", "tenant":
            await admin.create_tenant(step.name, tier=changes["tier"] or "", fields=changes)
        case "set", "tenant":
            await admin.set_tenant(step.name, changes, expect=step.version)
        case "delete", "tier":
            await admin.delete_tier(step.name, expect=step.version)
        case _:
            await admin.delete_tenant(step.name, expect=step.version)
