"""What is sold and what is asked for: tiers, focus, and the modulation they resolve to. Pydantic only, no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from policies.errors import InvalidRequest, NotEntitled
from policies.spelling import class_aliases, term_of

FOCUS_LIMIT = 0.99
"""The strongest focus that any tier can grant: delta diverges as |f| approaches 1."""
FOCUS_MAX_BELOW = 0.0
"""What a request may set below level 1.0 where no `focus_max` is granted: any strength above 0 tells the runner-up."""
_ROUNDING = 1e-9
"""Strengths that add up to a limit may exceed it by so much in binary."""

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
    logprobs: bool = Field(
        default=True, description="whether log-probabilities of text, and what measures logits, may be asked for"
    )

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
    lower_utility: bool | None = Field(default=None, description="whether requests may ask for a level below its own")
    focus_max: float | None = Field(default=None, ge=0.0, le=FOCUS_LIMIT, allow_inf_nan=False)
    focus_allow: frozenset[str] | None = Field(default=None, description="classes or terms; None: any")
    focus_locked: bool = False

    def level(self, model: str, floor: float = 0.01) -> float:
        """The best level this tier may have of `model`: a multiple of 0.01, at least the model's lowest."""
        return max(floor, round_level(self.utility_by_model.get(model, self.utility)))

    def may_lower(self, own: float) -> bool:
        """Whether a request may ask for less than this tier's `own` level of a model; unset: only where that is 1.0.

        Each lower level shows one more answer from the same noisy logits of one's own.
        """
        return own >= 1.0 if self.lower_utility is None else self.lower_utility

    def focus_limit(self, own: float) -> float:
        """The strongest focus that a request may set on a model of which this tier's `own` level is this."""
        if self.focus_max is not None:
            return self.focus_max
        return FOCUS_LIMIT if own >= 1.0 else FOCUS_MAX_BELOW

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


BEHIND = 1e-3
"""What background work weighs beside its tenant's other work: a thousandth, so it takes what others leave."""


class Share(BaseModel):
    """Whose work a request is, for fair batching: an opaque flow and its weight under contention."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flow: str
    weight: float = Field(default=1.0, gt=0.0, le=1e6, allow_inf_nan=False)
    background: bool = Field(default=False, description="whether it may wait for all other work")

    @property
    def lane(self) -> str:
        """Where it waits: the background of a flow apart from the rest of it. No name of a tenant holds a colon."""
        return f"{self.flow}:background" if self.background else self.flow

    @property
    def pull(self) -> float:
        """What its lane weighs under contention."""
        return self.weight * BEHIND if self.background else self.weight


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
        classes: the names that focus may use, of each also what stands before its first comma; None where the engine
            decides (words of a text model), and spellings of one term (`term_of`) add up before they are held to the
            limit.
        standing: the tenant's standing focus for this model.
        utility: a lower level asked for by the request, in (0, 1].
        focus: the request's own focus, added to the standing one class by class.

    Raises:
        InvalidRequest: a value out of range or an unknown class; `param` names it.
        NotEntitled: a level that is not the tier's to ask for, or a focus outside its terms.
    """
    own = tier.level(model, floor)
    level = _resolve_level(tier, model, floor, own, utility)
    names = _Names(classes, tier.focus_allow)
    _check_requested_focus(tier, focus or {}, names, model, own)
    standing = standing or {}
    unknown = [name for name in standing if classes is not None and names.term(name) not in classes]
    if unknown:
        raise NotEntitled(
            f"This tenant's standing focus names '{unknown[0]}', which {model} does not have; an admin must mend it.",
            code="entitlements_invalid",
        )
    return Modulation(
        utility=level,
        focus=_sum_of_focus(tier, standing, focus or {}, names, own),
        disclosure=tier.disclosure(level),
    )


def _resolve_level(tier: Tier, model: str, floor: float, own: float, utility: float | None) -> float:
    if utility is None:
        return own
    if not 0.0 < utility <= 1.0:  # also catches NaN
        raise InvalidRequest(f"utility must lie in (0, 1], not {utility}.", param="utility", code="out_of_range")
    level = round_level(utility)
    if level > own:
        raise NotEntitled(
            f"utility {utility:g} is above this key's level for {model}, {own:g}; "
            + (f"ask for {own:g} or less." if tier.may_lower(own) else f"ask for {own:g}."),
            param="utility",
            code="utility_not_entitled",
        )
    if level < floor:
        raise InvalidRequest(
            f"utility {utility:g} is below the lowest level of {model}, {floor:g}.",
            param="utility",
            code="out_of_range",
        )
    if level < own and not tier.may_lower(own):
        raise NotEntitled(
            f"This key may not ask for a level below its own of {model}, {own:g}: leave utility out. An admin can grant"
            " it by the tier's field 'lower_utility'.",
            param="utility",
            code="lower_utility_not_entitled",
        )
    return level


class _Names:
    """Names of focus, by what two of them have in common: a class also by its first synonym, a word in any spelling."""

    def __init__(self, classes: Collection[str] | None, allow: Iterable[str] | None) -> None:
        self.classes = classes
        self._aliases = class_aliases(tuple(classes or ()))
        self.allow = None if allow is None else {self.term(name): name for name in sorted(allow, reverse=True)}

    def term(self, name: str) -> str:
        return self._aliases.get(name, name) if self.classes is not None else term_of(name)

    def allowed(self, term: str) -> bool:
        return self.allow is None or term in self.allow

    def sums(self, focus: Focus) -> dict[str, float]:
        """Strength by term."""
        found: dict[str, float] = {}
        for name, strength in focus.items():
            term = self.term(name)
            found[term] = found.get(term, 0.0) + strength
        return found

    def spelling(self, standing: Focus, requested: Focus) -> dict[str, str]:
        """The name that each term goes by: a class's own, a word's an admin's where there is one, else a request would
        choose its tokens."""
        if self.classes is not None:
            return {term: term for term in map(self.term, [*standing, *requested])}
        by_admin = {**(self.allow or {}), **{self.term(name): name for name in sorted(standing, reverse=True)}}
        return {self.term(name): name for name in sorted(requested, reverse=True)} | by_admin


def _sum_of_focus(tier: Tier, standing: Focus, requested: Focus, names: _Names, own: float) -> dict[str, float]:
    """Standing and requested strengths by name, within `focus_max`.

    Where that is unset its default holds requests alone: it lets a standing focus be, and nothing be added to it.
    """
    fixed, asked, spelling = names.sums(standing), names.sums(requested), names.spelling(standing, requested)
    focus = {}
    for term in {**fixed, **asked}:
        limit, mine = tier.focus_limit(own), fixed.get(term, 0.0)
        if tier.focus_max is None:
            limit = min(FOCUS_LIMIT, max(limit, abs(mine)))
        strength = max(-limit, min(limit, mine + asked.get(term, 0.0)))
        if strength and names.allowed(term):
            focus[spelling[term]] = strength
    return dict(sorted(focus.items()))


def _check_requested_focus(tier: Tier, focus: Focus, names: _Names, model: str, own: float) -> None:
    limit = tier.focus_limit(own)
    if focus and (tier.focus_locked or limit == 0.0):
        by_default = tier.focus_max is None and not tier.focus_locked
        hint = f" on {model} at its level, {own:g}; an admin can grant it by the tier's field 'focus_max'"
        why = hint if by_default else ""
        raise NotEntitled(f"This key may not set focus{why}.", param="focus", code="focus_not_entitled")
    sums = names.sums(focus)
    for name, strength in focus.items():
        term = names.term(name)
        _check_name(name, term, strength, names, model)
        # One spelling may not be beyond the limit because another takes it back.
        beyond = max(strength, sums[term], key=abs)
        if abs(beyond) > limit + _ROUNDING:
            together = "" if beyond == strength else " with its other spellings"
            raise NotEntitled(
                f"The focus strength of '{name}'{together}, {beyond:g}, is beyond this key's limit of {limit:g}.",
                param=f"focus.{name}",
                code="focus_not_entitled",
            )


def _check_name(name: str, term: str, strength: float, names: _Names, model: str) -> None:
    param = f"focus.{name}"
    if not -1.0 < strength < 1.0:
        raise InvalidRequest(
            f"The focus strength of '{name}' must lie strictly between -1 and 1, not {strength:g}.",
            param=param,
            code="out_of_range",
        )
    if names.classes is not None and term not in names.classes:
        known = ", ".join(sorted(names.classes)[:20]) + (", ..." if len(names.classes) > 20 else "")
        raise InvalidRequest(
            f"{model} has no class '{name}'; focus can name: {known}.", param=param, code="unknown_class"
        )
    if not term:
        raise InvalidRequest("focus names a word without a visible letter.", param=param, code="unknown_term")
    if not names.allowed(term):
        raise NotEntitled(f"This key may not set focus on '{name}'.", param=param, code="focus_not_entitled")
