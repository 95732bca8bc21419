"""What is sold and what is asked for: tiers, focus, and the modulation they resolve to. Pydantic only, no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from policies.errors import InvalidRequest, NotEntitled

FOCUS_LIMIT = 0.99
"""The strongest focus that any tier can grant: delta diverges as |f| approaches 1."""

Level = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
Strength = Annotated[float, Field(gt=-1.0, lt=1.0, allow_inf_nan=False)]
Focus = Mapping[str, Strength]
"""Class or term to strength in (-1, 1): positive favours, negative avoids."""


def round_level(utility: float) -> float:
    """The level at which a requested utility is delivered: the next multiple of 0.01 at or below it, at least 0.01."""
    # The epsilon keeps 0.29 (28.999... in hundredths) at 0.29; it is far below the step between levels.
    return max(1, math.floor(utility * 100 + 1e-6)) / 100


class Disclosure(BaseModel):
    """What an answer reveals of the scores behind it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: int | None = Field(default=None, ge=1, description="most labels in a classification answer; None: all")
    digits: int | None = Field(default=None, ge=0, le=16, description="decimals of a score; 0: no score; None: all")
    logprobs: bool = Field(default=True, description="whether log-probabilities of text may be asked for")

    def score(self, value: float) -> float | None:
        """As much of a score as may be seen, None for nothing: rounded to 0 digits it would still tell doubt."""
        if self.digits is None:
            return value
        return round(value, self.digits) if self.digits else None


FULL_DISCLOSURE = Disclosure()
DEGRADED_DISCLOSURE = Disclosure(labels=1, digits=0, logprobs=False)


class Tier(BaseModel):
    """The modulation terms of a tenant, overrides merged: its levels, what they reveal, and how it may set focus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    utility: Level
    utility_by_model: Mapping[str, Level] = Field(default_factory=dict)
    labels: int | None = Field(default=None, ge=1)
    digits: int | None = Field(default=None, ge=0, le=16)
    logprobs: bool | None = None
    focus_max: float = Field(default=FOCUS_LIMIT, ge=0.0, le=FOCUS_LIMIT, allow_inf_nan=False)
    focus_allow: frozenset[str] | None = Field(default=None, description="classes or terms; None: any")
    focus_locked: bool = False

    def level(self, model: str, floor: float = 0.01) -> float:
        """The best level this tier may have of `model`: a multiple of 0.01, at least the model's lowest."""
        return max(floor, round_level(self.utility_by_model.get(model, self.utility)))

    def disclosure(self, level: float) -> Disclosure:
        """What an answer at `level` reveals: everything at 1.0, little below, more where the tier grants it."""
        default = FULL_DISCLOSURE if level >= 1.0 else DEGRADED_DISCLOSURE
        return Disclosure(
            labels=default.labels if self.labels is None else self.labels,
            digits=default.digits if self.digits is None else self.digits,
            logprobs=default.logprobs if self.logprobs is None else self.logprobs,
        )


class Modulation(BaseModel):
    """One request's resolved terms: all that a replica is told about a tenant's quality."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    utility: Level = 1.0
    focus: Focus = Field(default_factory=dict)
    disclosure: Disclosure = FULL_DISCLOSURE


class Share(BaseModel):
    """Whose work a request is, for fair batching: an opaque flow and its weight under contention."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flow: str
    weight: float = Field(default=1.0, gt=0.0, le=1e6, allow_inf_nan=False)


def resolve(
    tier: Tier,
    model: str,
    *,
    floor: float,
    classes: Collection[str] | None,
    standing: Focus | None = None,
    utility: float | None = None,
    focus: Focus | None = None,
) -> Modulation:
    """Resolve a tenant's terms and one request's wishes to a `Modulation` of `model`.

    Args:
        floor: the model's lowest level, about 1/K.
        classes: the names that focus may use; None where the engine decides (words of a text model).
        standing: the tenant's standing focus for this model.
        utility: a lower level asked for by the request, in (0, 1].
        focus: the request's own focus, added to the standing one class by class.

    Raises:
        InvalidRequest: a value out of range or an unknown class; `param` names it.
        NotEntitled: a level above the tier's, or a focus outside its terms.
    """
    level = _resolve_level(tier, model, floor, utility)
    requested = dict(focus or {})
    _check_requested_focus(tier, requested, classes, model)
    standing = standing or {}
    unknown = [name for name in standing if classes is not None and name not in classes]
    if unknown:
        raise NotEntitled(
            f"This tenant's standing focus names '{unknown[0]}', which {model} does not have; an admin must mend it.",
            code="entitlements_invalid",
        )
    summed = {name: standing.get(name, 0.0) + requested.get(name, 0.0) for name in {**standing, **requested}}
    limit = tier.focus_max
    clamped = {name: max(-limit, min(limit, f)) for name, f in sorted(summed.items())}
    return Modulation(
        utility=level,
        focus={name: f for name, f in clamped.items() if f and _allowed(tier, name)},
        disclosure=tier.disclosure(level),
    )


def _resolve_level(tier: Tier, model: str, floor: float, utility: float | None) -> float:
    own = tier.level(model, floor)
    if utility is None:
        return own
    if not 0.0 < utility <= 1.0:  # also catches NaN
        raise InvalidRequest(f"utility must lie in (0, 1], not {utility}.", param="utility", code="out_of_range")
    level = round_level(utility)
    if level > own:
        raise NotEntitled(
            f"utility {utility:g} is above this key's level for {model}, {own:g}; ask for {own:g} or less.",
            param="utility",
            code="utility_not_entitled",
        )
    if level < floor:
        raise InvalidRequest(
            f"utility {utility:g} is below the lowest level of {model}, {floor:g}.",
            param="utility",
            code="out_of_range",
        )
    return level


def _allowed(tier: Tier, name: str) -> bool:
    return tier.focus_allow is None or name in tier.focus_allow


def _check_requested_focus(tier: Tier, focus: Focus, classes: Collection[str] | None, model: str) -> None:
    if focus and (tier.focus_locked or tier.focus_max == 0.0):
        raise NotEntitled("This key may not set focus.", param="focus", code="focus_not_entitled")
    for name, strength in focus.items():
        param = f"focus.{name}"
        if not -1.0 < strength < 1.0:
            raise InvalidRequest(
                f"The focus strength of '{name}' must lie strictly between -1 and 1, not {strength:g}.",
                param=param,
                code="out_of_range",
            )
        if classes is not None and name not in classes:
            known = ", ".join(sorted(classes)[:20]) + (", ..." if len(classes) > 20 else "")
            raise InvalidRequest(
                f"{model} has no class '{name}'; focus can name: {known}.", param=param, code="unknown_class"
            )
        if not _allowed(tier, name):
            raise NotEntitled(f"This key may not set focus on '{name}'.", param=param, code="focus_not_entitled")
        if abs(strength) > tier.focus_max:
            raise NotEntitled(
                f"The focus strength of '{name}', {strength:g}, is beyond this key's limit of {tier.focus_max:g}.",
                param=param,
                code="focus_not_entitled",
            )
