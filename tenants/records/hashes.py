"""Records as hashes of the store, parsed strictly and written back: `tier:<name>`, `tenant:<id>`, `apikey:<sha256>`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tenants.records import completeness, keyspace, schedule
from tenants.records.fields import iso, listed
from tenants.records.schema import LIMIT_FIELDS, KeyRecord, ProjectRecord, RecordError, TenantRecord, Terms, TierRecord

RawHash = Mapping[bytes, bytes]
"""A hash as the server answers it."""
_TERM_FIELDS = frozenset(Terms.model_fields) - {"utility_by_model", "limits_by_model"}
_TENANT_FIELDS = frozenset({"name", "tier", "status", "focus_locked", "project"})
_PROJECT_FIELDS = frozenset(ProjectRecord.model_fields) - {"id"}
_KEY_FIELDS = frozenset(KeyRecord.model_fields) - {"digest"}
_Record = TypeVar("_Record", bound=BaseModel)


def parse_tier(name: str, raw: RawHash, now: float | None = None) -> TierRecord:
    """Parse `tier:<name>` as it is at a moment, None: now. Raises RecordError, naming key and field."""
    key = keyspace.tier(name)
    fields, scheduled = _at(decode(key, raw), now)
    terms, rest, _ = _split(key, fields)
    _refuse_unknown(key, rest, frozenset())
    parsed = _validate(Terms, key, terms)
    if parsed.utility is None:
        raise RecordError(key, "utility", "is missing; a tier needs a level in (0, 1]")
    return TierRecord(name=name, terms=parsed, scheduled=scheduled)


def parse_tenant(tenant_id: str, raw: RawHash, now: float | None = None) -> TenantRecord:
    """Parse `tenant:<id>` as it is at a moment, None: now. Raises RecordError, naming key and field."""
    key = keyspace.tenant(tenant_id)
    fields, scheduled = _at(decode(key, raw), now)
    terms, rest, focus = _split(key, fields)
    _refuse_unknown(key, rest, _TENANT_FIELDS)
    if not keyspace.is_name(rest.get("tier", "")):
        raise RecordError(key, "tier", "is missing or no tier's name")
    overrides = _validate(Terms, key, terms)
    values = {"name": tenant_id, **rest, "id": tenant_id, "standing_focus": focus, "overrides": overrides}
    values["scheduled"] = scheduled
    return _validate(TenantRecord, key, values)


def parse_key(digest: str, raw: RawHash) -> KeyRecord:
    """Parse `apikey:<sha256>`. Raises RecordError, naming key and field."""
    key = keyspace.apikey(digest)
    values = decode(key, raw)
    _refuse_unknown(key, values, _KEY_FIELDS)
    return _validate(KeyRecord, key, {**values, "digest": digest})


def parse_project(project_id: str, raw: RawHash, now: float | None = None) -> ProjectRecord:
    """Parse `project:<id>`. Raises RecordError, naming key and field."""
    key = keyspace.project(project_id)
    values = decode(key, raw)
    _refuse_unknown(key, values, _PROJECT_FIELDS)
    return _validate(ProjectRecord, key, {**values, "id": project_id})


def dump_project(record: ProjectRecord) -> dict[str, str]:
    """The fields of `project:<id>`, as the strings that `parse_project` reads."""
    set_ = {name: getattr(record, name) for name in sorted(record.model_fields_set - {"id"})}
    return {name: _NONE_WORDS[name] if value is None else _text(value) for name, value in set_.items()}


def dump_terms(terms: Terms) -> dict[str, str]:
    """The fields that are set, as the strings that `parse_tier` reads."""
    fields = {f"utility:{model}": _text(level) for model, level in terms.utility_by_model.items()}
    for model, limits in terms.limits_by_model.items():
        for name in sorted(limits.model_fields_set):
            limit = getattr(limits, name)
            fields[f"{name}:{model}"] = _NONE_WORDS[name] if limit is None else _text(limit)
    for name in sorted(terms.model_fields_set & _TERM_FIELDS):
        value = getattr(terms, name)
        if value is None and name not in _NONE_WORDS:
            continue
        fields[name] = _NONE_WORDS[name] if value is None else _text(value)
    return fields


def dump_tenant(record: TenantRecord) -> dict[str, str]:
    """The fields of `tenant:<id>`, as the strings that `parse_tenant` reads."""
    fields = {"name": record.name, "tier": record.tier, "status": record.status}
    if record.project:
        fields["project"] = record.project
    if record.focus_locked:
        fields["focus_locked"] = "true"
    for model, terms in record.standing_focus.items():
        fields |= {f"focus:{model}:{term}": _text(strength) for term, strength in terms.items()}
    return fields | dump_terms(record.overrides) | dict(record.scheduled)


def dump_key(record: KeyRecord) -> dict[str, str]:
    """The fields of `apikey:<sha256>`, as the strings that `parse_key` reads."""
    fields = {"tenant": record.tenant, "label": record.label, "prefix": record.prefix, "status": record.status}
    if record.project:
        fields["project"] = record.project
    if record.scopes is not None:
        fields["scopes"] = _text(record.scopes)
    limits = {name: getattr(record, name) for name in LIMIT_FIELDS}
    fields |= {name: _text(limit) for name, limit in limits.items() if limit is not None}
    moments = {"created_at": record.created_at, "expires_at": record.expires_at, "last_used": record.last_used}
    return fields | {name: iso(moment) for name, moment in moments.items() if moment is not None}


_NONE_WORDS = {
    "labels": "all",
    "digits": "all",
    "focus_allow": "*",
    "models": "*",
    **dict.fromkeys(LIMIT_FIELDS, "unlimited"),
}


def _text(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return repr(value)
        case frozenset():
            return listed(value)
        case _:
            return str(value)


def decode(key: str, raw: RawHash) -> dict[str, str]:
    """A record's fields as texts, the seal apart. Raises RecordError where one is no text, or is lost."""
    values = {}
    for name_bytes, value_bytes in raw.items():
        field = name_bytes.decode("utf-8", "backslashreplace")
        try:
            values[name_bytes.decode()] = value_bytes.decode()
        except UnicodeDecodeError:
            raise RecordError(key, field, "is not UTF-8 text") from None
    if name := completeness.lost(values):
        raise RecordError(key, name, "was lost; set it again, or remove it (--remove)")
    values.pop(completeness.FIELD, None)
    return values


def _at(fields: Mapping[str, str], now: float | None) -> tuple[dict[str, str], dict[str, str]]:
    """A record's fields at a moment, and those that change it later."""
    whole = schedule.folded(fields, now)
    later = {name: value for name, value in whole.items() if schedule.parse(name) is not None}
    return {name: value for name, value in whole.items() if name not in later}, later


def _split(key: str, fields: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str], dict[str, dict[str, str]]]:
    """The fields of `Terms`, the others, and the standing focus."""
    terms: dict[str, Any] = {}
    by_model: dict[str, str] = {}
    limits: dict[str, dict[str, str]] = {}
    rest: dict[str, str] = {}
    focus: dict[str, dict[str, str]] = {}
    for name, value in fields.items():
        kind, _, subject = name.partition(":")
        if name in _TERM_FIELDS:
            terms[name] = value
        elif kind == "utility" and keyspace.is_model(subject):
            by_model[subject] = value
        elif kind in LIMIT_FIELDS and keyspace.is_model(subject):
            limits.setdefault(subject, {})[kind] = value
        elif kind == "focus" and key.startswith(keyspace.TENANT):
            model, _, term = subject.partition(":")
            if not keyspace.is_model(model) or not term:
                raise RecordError(key, name, "expected focus:<model>:<class or term>")
            focus.setdefault(model, {})[term] = value
        else:
            rest[name] = value
    models = {"utility_by_model": by_model, "limits_by_model": limits}
    return terms | {name: value for name, value in models.items() if value}, rest, focus


def _refuse_unknown(key: str, fields: Mapping[str, str], known: frozenset[str]) -> None:
    for name in sorted(fields):
        if name not in known:
            raise RecordError(key, name, "is not a field of this record")


def _validate(record: type[_Record], key: str, values: Mapping[str, Any]) -> _Record:
    try:
        return record.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise RecordError(key, _field_of(first["loc"]), _problem(first, key)) from None


def _field_of(loc: tuple[int | str, ...]) -> str:
    """The hash field that a location in the model came from."""
    parts = [str(part) for part in loc]
    match parts:
        case ["utility_by_model", model, *_]:
            return f"utility:{model}"
        case ["limits_by_model", model, name, *_]:
            return f"{name}:{model}"
        case ["standing_focus", model, term, *_]:
            return f"focus:{model}:{term}"
        case [name, *_]:
            return name
    return ""


def _problem(error: Any, key: str) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    # A key's record may hold what someone pasted by mistake, so its values are not repeated.
    if key.startswith(keyspace.APIKEY) or not isinstance(error["input"], str):
        return message
    return f"{message}, not {error['input'][:40]!r}"
