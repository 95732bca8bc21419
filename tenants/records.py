"""The hashes that an admin edits, parsed strictly: `tier:<name>`, `tenant:<id>` and `apikey:<sha256>`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from policies.terms import FOCUS_LIMIT, Level, Strength
from tenants import keyspace, seal
from tenants.fields import Limit, Moment, Names, iso, listed, unbounded

RawHash = Mapping[bytes, bytes]
"""A hash as the server answers it."""


class RecordError(Exception):
    """A record that does not validate.

    Args:
        key: the Redis key.
        field: the field at fault, or "" where the record itself is.
        problem: what is wrong, in words for an admin; never a secret.
    """

    def __init__(self, key: str, field: str, problem: str) -> None:
        super().__init__(f"{key} {field}: {problem}" if field else f"{key}: {problem}")
        self.key = key
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[type[RecordError], tuple[str, str, str]]:
        return type(self), (self.key, self.field, self.problem)


class LimitFields(BaseModel):
    """Requests and tokens per sliding minute, requests at once, and quotas per UTC hour, day and month; None is
    unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rpm: Limit = None
    tpm: Limit = None
    concurrency: Limit = None
    quota_requests_hour: Limit = None
    quota_requests_day: Limit = None
    quota_requests_month: Limit = None
    quota_images_hour: Limit = None
    quota_images_day: Limit = None
    quota_images_month: Limit = None
    quota_tokens_hour: Limit = None
    quota_tokens_day: Limit = None
    quota_tokens_month: Limit = None


LIMIT_FIELDS = tuple(LimitFields.model_fields)


class Terms(LimitFields):
    """What a tier sells and a tenant may override. An unset field is inherited; None is 'all' or 'unlimited'.

    `billing_day` is the day of the month on which monthly quotas begin anew.
    """

    utility: Level | None = None
    utility_by_model: Mapping[str, Level] = Field(default_factory=dict)
    labels: Annotated[int | None, Field(ge=1, le=1_000_000), unbounded("all")] = None
    digits: Annotated[int | None, Field(ge=0, le=16), unbounded("all")] = None
    logprobs: bool | None = None
    lower_utility: bool | None = None
    limits_by_model: Mapping[str, LimitFields] = Field(default_factory=dict)
    billing_day: Annotated[int, Field(ge=1, le=28)] = 1
    weight: Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)] = 1.0
    focus_max: Annotated[float | None, Field(ge=0.0, le=FOCUS_LIMIT, allow_inf_nan=False)] = None
    focus_allow: Names = None
    models: Names = None


SCOPES = ("inference", "entitlements")
"""What a key may do: call models, or only read what it may do."""
MODEL_SCOPE = "model:"
"""Before a model's id: the key may call that model."""


class TierRecord(BaseModel):
    """`tier:<name>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    terms: Terms


class TenantRecord(BaseModel):
    """`tenant:<id>`. `standing_focus` is model to class or term to strength."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    tier: str
    status: Literal["active", "suspended"] = "active"
    focus_locked: bool = False
    standing_focus: Mapping[str, Mapping[str, Strength]] = Field(default_factory=dict)
    overrides: Terms = Field(default_factory=Terms)


class KeyRecord(LimitFields):
    """`apikey:<sha256>`. Times are unix seconds; a limit holds for this key beside its tenant's."""

    digest: str
    tenant: str
    label: str = ""
    prefix: str = ""
    scopes: Names = None
    created_at: Moment = None
    expires_at: Moment = None
    last_used: Moment = None
    status: Literal["active", "revoked"] = "active"

    @field_validator("tenant")
    @classmethod
    def _tenant_is_a_name(cls, value: str) -> str:
        if not keyspace.is_name(value):
            raise ValueError("expected a tenant id")
        return value

    @field_validator("scopes")
    @classmethod
    def _scopes_are_known(cls, value: frozenset[str] | None) -> frozenset[str] | None:
        for scope in value or ():
            names_model = scope.startswith(MODEL_SCOPE) and keyspace.is_model(scope.removeprefix(MODEL_SCOPE))
            if scope not in SCOPES and not names_model:
                raise ValueError(f"expected {', '.join(SCOPES)} or {MODEL_SCOPE}<id>")
        return value

    @property
    def id(self) -> str:
        """What support and `tenants key revoke` call this key: the first 12 digits of its hash."""
        return self.digest[:12]

    def expired(self, now: float) -> bool:
        """Whether the key has run out at `now`, in unix seconds."""
        return self.expires_at is not None and now >= self.expires_at


_TERM_FIELDS = frozenset(Terms.model_fields) - {"utility_by_model", "limits_by_model"}
_TENANT_FIELDS = frozenset({"name", "tier", "status", "focus_locked"})
_KEY_FIELDS = frozenset(KeyRecord.model_fields) - {"digest"}
_Record = TypeVar("_Record", bound=BaseModel)


def parse_tier(name: str, raw: RawHash) -> TierRecord:
    """Parse `tier:<name>`. Raises RecordError, naming key and field."""
    key = keyspace.tier(name)
    terms, rest, _ = _split(key, raw)
    _refuse_unknown(key, rest, frozenset())
    parsed = _validate(Terms, key, terms)
    if parsed.utility is None:
        raise RecordError(key, "utility", "is missing; a tier needs a level in (0, 1]")
    return TierRecord(name=name, terms=parsed)


def parse_tenant(tenant_id: str, raw: RawHash) -> TenantRecord:
    """Parse `tenant:<id>`. Raises RecordError, naming key and field."""
    key = keyspace.tenant(tenant_id)
    terms, rest, focus = _split(key, raw)
    _refuse_unknown(key, rest, _TENANT_FIELDS)
    if not keyspace.is_name(rest.get("tier", "")):
        raise RecordError(key, "tier", "is missing or no tier's name")
    overrides = _validate(Terms, key, terms)
    values = {"name": tenant_id, **rest, "id": tenant_id, "standing_focus": focus, "overrides": overrides}
    return _validate(TenantRecord, key, values)


def parse_key(digest: str, raw: RawHash) -> KeyRecord:
    """Parse `apikey:<sha256>`. Raises RecordError, naming key and field."""
    key = keyspace.apikey(digest)
    values = _decode(key, raw)
    _refuse_unknown(key, values, _KEY_FIELDS)
    return _validate(KeyRecord, key, {**values, "digest": digest})


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
    if record.focus_locked:
        fields["focus_locked"] = "true"
    for model, terms in record.standing_focus.items():
        fields |= {f"focus:{model}:{term}": _text(strength) for term, strength in terms.items()}
    return fields | dump_terms(record.overrides)


def dump_key(record: KeyRecord) -> dict[str, str]:
    """The fields of `apikey:<sha256>`, as the strings that `parse_key` reads."""
    fields = {"tenant": record.tenant, "label": record.label, "prefix": record.prefix, "status": record.status}
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


def _decode(key: str, raw: RawHash) -> dict[str, str]:
    values = {}
    for name_bytes, value_bytes in raw.items():
        field = name_bytes.decode("utf-8", "backslashreplace")
        try:
            values[name_bytes.decode()] = value_bytes.decode()
        except UnicodeDecodeError:
            raise RecordError(key, field, "is not UTF-8 text") from None
    if name := seal.lost(values):
        raise RecordError(key, name, "was lost; set it again, or remove it by an empty value")
    values.pop(seal.FIELD, None)
    return values


def _split(key: str, raw: RawHash) -> tuple[dict[str, Any], dict[str, str], dict[str, dict[str, str]]]:
    """The fields of `Terms`, the others, and the standing focus."""
    terms: dict[str, Any] = {}
    by_model: dict[str, str] = {}
    limits: dict[str, dict[str, str]] = {}
    rest: dict[str, str] = {}
    focus: dict[str, dict[str, str]] = {}
    for name, value in _decode(key, raw).items():
        kind, _, subject = name.partition(":")
        if name in _TERM_FIELDS:
            terms[name] = value
        elif kind == "utility" and keyspace.is_model(subject):
            by_model[subject] = value
        elif kind in LIMIT_FIELDS and keyspace.is_name(subject):
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
