"""What an admin edits: tiers, tenants and keys. `tenants.records.hashes` reads them from the store's hashes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from policies.terms import FOCUS_LIMIT, Level, Strength
from tenants.records import keyspace, schedule
from tenants.records.fields import Limit, Moment, Money, Names, unbounded
from tenants.records.ladders import NEVER, REFUSE, Busy, Exhausted


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


def _planned(value: str) -> str:
    if not keyspace.is_plan(value):
        raise ValueError("expected a version of a plan such as standard@1")
    return value


PlanReference = Annotated[str | None, AfterValidator(lambda value: value if value is None else _planned(value))]


class LimitFields(BaseModel):
    """Requests and tokens per sliding minute, requests at once, quotas per UTC hour, day and month, and budgets in
    micro-units of the plan's currency per UTC day and month; None is unlimited."""

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
    budget_day: Money = None
    budget_month: Money = None


LIMIT_FIELDS = tuple(LimitFields.model_fields)


class Terms(LimitFields):
    """What a tier sells and a tenant may override. An unset field is inherited; None is 'all' or 'unlimited'.

    `billing_day` is the day of the month on which monthly quotas and budgets begin anew, `plan` the version of a price
    list, `show_cost` whether answers say what they cost, `when_exhausted` and `when_busy` what answers step down to.
    """

    utility: Level | None = None
    utility_by_model: Mapping[str, Level] = Field(default_factory=dict)
    labels: Annotated[int | None, Field(ge=1, le=1_000_000), unbounded("all")] = None
    digits: Annotated[int | None, Field(ge=0, le=16), unbounded("all")] = None
    logprobs: bool | None = None
    lower_utility: bool | None = None
    limits_by_model: Mapping[str, LimitFields] = Field(default_factory=dict)
    billing_day: Annotated[int, Field(ge=1, le=28)] = 1
    plan: PlanReference = None
    show_cost: bool = False
    when_exhausted: Exhausted = REFUSE
    when_busy: Busy = NEVER
    weight: Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)] = 1.0
    focus_max: Annotated[float | None, Field(ge=0.0, le=FOCUS_LIMIT, allow_inf_nan=False)] = None
    focus_allow: Names = None
    models: Names = None


SCOPES = ("inference", "entitlements", "usage")
"""What a key may do: call models, only read what it may do, or read what its tenant has used."""
MODEL_SCOPE = "model:"
"""Before a model's id: the key may call that model."""


def _is_project(value: str) -> str:
    if value and not keyspace.is_name(value):
        raise ValueError("expected a project's id")
    return value


Project = Annotated[str, AfterValidator(_is_project)]
"""The project whose limits hold too; "": none."""


class _Scheduled(BaseModel):
    """A record that may change by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheduled: Mapping[str, str] = Field(default_factory=dict)
    """Fields of `tenants.records.schedule` whose moment is still to come."""

    @property
    def changes_at(self) -> float | None:
        """When the record changes next by itself, in unix seconds."""
        return min(schedule.moments(self.scheduled), default=None)


class TierRecord(_Scheduled):
    """`tier:<name>`."""

    name: str
    terms: Terms


class TenantRecord(_Scheduled):
    """`tenant:<id>`. `standing_focus` is model to class or term to strength."""

    id: str
    name: str
    tier: str
    status: Literal["active", "suspended"] = "active"
    project: Project = ""
    focus_locked: bool = False
    standing_focus: Mapping[str, Mapping[str, Strength]] = Field(default_factory=dict)
    overrides: Terms = Field(default_factory=Terms)


class ProjectRecord(LimitFields):
    """`project:<id>`: limits that its tenants and keys share, beside their own."""

    id: str
    billing_day: Annotated[int, Field(ge=1, le=28)] = 1


class KeyRecord(LimitFields):
    """`apikey:<sha256>`. Times are unix seconds; a limit holds for this key beside its tenant's."""

    digest: str
    tenant: str
    project: Project = ""
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

    def age_days(self, now: float) -> int | None:
        """Whole days since it was made; None where that is not known."""
        return None if self.created_at is None else int((now - self.created_at) // 86_400)

    def old(self, now: float, days: int | None) -> bool:
        """Whether it is in use and older than so many days; one of unknown age is."""
        if days is None or self.status != "active" or self.expired(now):
            return False
        age = self.age_days(now)
        return age is None or age > days

    def expired(self, now: float) -> bool:
        """Whether the key has run out at `now`, in unix seconds."""
        return self.expires_at is not None and now >= self.expires_at
