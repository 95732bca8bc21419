"""What one API key may do: its tenant's record, its tier's and its own, merged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from policies.terms import Share, Tier
from tenants.records.hashes import RawHash
from tenants.records.ladders import NEVER, REFUSE, Ladder
from tenants.records.prices import Plan
from tenants.records.schema import (
    LIMIT_FIELDS,
    MODEL_SCOPE,
    KeyRecord,
    LimitFields,
    ProjectRecord,
    TenantRecord,
    Terms,
    TierRecord,
)


class Limits(LimitFields):
    """A tenant's limits; `weight` is its fair share, `billing_day` the first day of its monthly quotas."""

    weight: float = 1.0
    billing_day: int = 1


@dataclass(frozen=True, slots=True)
class Entitlements:
    """One key's rights, resolved. `version` changes with any edit of the records behind it.

    `limits` are the tenant's, over all its keys; `key_limits` this key's beside them, None where it has none;
    `model_limits` the tenant's for single models, beside both. `plan` is the version of the price list that it signed;
    without one nothing costs anything. `show_cost`: its answers say what they cost.
    `when_exhausted` and `when_busy` are the levels that its answers step down to.
    `background`: its work now waits behind all other.
    """

    tenant: str
    name: str
    tier: Tier
    limits: Limits
    key_limits: LimitFields | None
    models: frozenset[str] | None
    standing_focus: Mapping[str, Mapping[str, float]]
    key_id: str
    key_prefix: str
    scopes: frozenset[str] | None
    key_expires_at: float | None
    status: str
    version: str
    model_limits: Mapping[str, LimitFields] = field(default_factory=dict)
    key_created_at: float | None = None
    projects: Mapping[str, Limits] = field(default_factory=dict)
    """Limits that are shared with others, by project: the tenant's and this key's, beside their own."""
    plan: Plan | None = None
    show_cost: bool = False
    when_exhausted: Ladder = REFUSE
    when_busy: Ladder = NEVER
    background: bool = False

    def may_use(self, model: str) -> bool:
        """Whether `model` exists for this key: its tenant has it, and its scopes do not leave it out."""
        if self.models is not None and model not in self.models:
            return False
        named = self._named_models()
        return not named or "inference" in named or MODEL_SCOPE + model in named

    def may_infer(self) -> bool:
        """Whether this key may call models at all, and not only read what it may do."""
        return self.scopes is None or bool(self._named_models())

    def may_read_usage(self) -> bool:
        """Whether this key may read what its tenant has used."""
        return self.scopes is None or "usage" in self.scopes

    def _named_models(self) -> frozenset[str]:
        return frozenset(s for s in self.scopes or () if s == "inference" or s.startswith(MODEL_SCOPE))

    def focus(self, model: str) -> Mapping[str, float]:
        """The tenant's standing focus on `model`."""
        return self.standing_focus.get(model, {})

    def names(self, model: str) -> bool:
        """Whether a level, a limit or a standing focus is of `model` by this name."""
        return model in self.tier.utility_by_model or model in self.model_limits or model in self.standing_focus

    def share(self) -> Share:
        """Whose work a request is, for fair batching."""
        return Share(flow=self.tenant, weight=self.limits.weight, background=self.background)


def merge(
    tenant: TenantRecord,
    tier: TierRecord,
    key: KeyRecord,
    version: str,
    plan: Plan | None = None,
    projects: Iterable[ProjectRecord] = (),
) -> Entitlements:
    """Resolve records to one: a tenant's field goes before its tier's, and one for a model before one for all."""
    own, base = tenant.overrides, tier.terms

    def pick(name: str, default: Any = None) -> Any:
        for terms in (own, base):
            if name in terms.model_fields_set:
                return getattr(terms, name)
        return default

    return Entitlements(
        tenant=tenant.id,
        name=tenant.name,
        tier=Tier(
            name=tier.name,
            utility=pick("utility"),
            utility_by_model=_levels(own, base),
            # Unset differs from 'all' here: the level then decides, as `Tier.disclosure` does.
            labels=_revealed(pick("labels", _UNSET)),
            digits=_revealed(pick("digits", _UNSET), most=16),
            logprobs=pick("logprobs"),
            lower_utility=pick("lower_utility"),
            focus_max=pick("focus_max"),
            focus_allow=pick("focus_allow"),
            focus_locked=tenant.focus_locked,
        ),
        limits=Limits(**{name: pick(name, info.default) for name, info in Limits.model_fields.items()}),
        models=pick("models"),
        standing_focus=tenant.standing_focus,
        key_limits=LimitFields(**own_limits) if (own_limits := _limits(key)) else None,
        key_id=key.id,
        key_prefix=key.prefix,
        scopes=key.scopes,
        key_expires_at=key.expires_at,
        status=tenant.status,
        version=version,
        model_limits=_model_limits(own, base),
        key_created_at=key.created_at,
        projects={p.id: Limits(**p.model_dump(exclude={"id"})) for p in projects},
        plan=plan,
        show_cost=pick("show_cost", False),
        when_exhausted=pick("when_exhausted", REFUSE),
        when_busy=pick("when_busy", NEVER),
    )


def plan_of(tenant: TenantRecord, tier: TierRecord) -> str | None:
    """The version of a plan that a tenant signed, or else its tier's."""
    return tenant.overrides.plan or tier.terms.plan


def _model_limits(own: Terms, base: Terms) -> dict[str, LimitFields]:
    """Limits of single models: a tenant's field goes before its tier's for the same model."""
    models = {**base.limits_by_model, **own.limits_by_model}
    return {
        model: LimitFields(
            **{
                name: getattr(terms.limits_by_model[model], name)
                for terms in (base, own)
                if model in terms.limits_by_model
                for name in terms.limits_by_model[model].model_fields_set
            }
        )
        for model in models
    }


def _limits(key: KeyRecord) -> dict[str, int]:
    return {name: limit for name in LIMIT_FIELDS if (limit := getattr(key, name)) is not None}


_UNSET = object()
_ALL_LABELS = 2**31


def _revealed(value: Any, most: int = _ALL_LABELS) -> int | None:
    if value is _UNSET:
        return None
    return most if value is None else int(value)


def _levels(own: Terms, base: Terms) -> dict[str, float]:
    # A tenant's general level beats what its tier says of a single model.
    inherited = {} if own.utility is not None else base.utility_by_model
    return {**inherited, **own.utility_by_model}


def digest(records: Iterable[tuple[str, RawHash]]) -> str:
    """Twelve hex digits over raw records (key, hash), `last_used` left out: any client's edit changes it."""
    state = hashlib.sha256()
    for key, raw in records:
        state.update(key.encode())
        for name, value in sorted(raw.items()):
            if name != b"last_used":
                state.update(b"%d:%s%d:%s" % (len(name), name, len(value), value))
    return state.hexdigest()[:12]
