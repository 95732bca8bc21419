"""What a key may do, and what is left of its limits."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from deployments.gateway.api.dependencies import KEY_REQUIRED, Context, Gateway, KeyedRoute
from deployments.gateway.api.schemas import ERRORS
from tenants.live.entitlements import Entitlements
from tenants.metering import limits

router = APIRouter(tags=["entitlements"], dependencies=KEY_REQUIRED, route_class=KeyedRoute, responses=ERRORS)


class ModelTerms(BaseModel):
    """Terms of one model."""

    id: str = Field(description="Model id.")
    utility: float = Field(description="This key's level of the model.")
    utility_now: float | None = Field(
        description="Level of the next answer, by what is left of quotas and budgets; null: it would be refused."
    )
    labels: int | None = Field(description="Most labels in an answer; null: all.")
    digits: int | None = Field(description="Decimal digits of a score; 0: no score; null: all.")
    logprobs: bool = Field(
        description="Whether text's log-probabilities, logit_bias and response_format may be asked for."
    )
    lower_utility: bool = Field(description="Whether a request may ask for a lower utility than that.")
    focus_max: float = Field(description="The strongest focus that a request may set; 0: none.")
    standing_focus: dict[str, float] = Field(description="Focus that applies to every call.")


class EntitlementsView(BaseModel):
    """Answer of GET /v1/entitlements."""

    tenant: str = Field(description="Tenant id.")
    name: str = Field(description="Tenant's name.")
    tier: str = Field(description="Tier's name.")
    key: str = Field(description="The key's prefix, for support.")
    models: list[ModelTerms] = Field(description="Models that this key may use and that are ready.")
    focus_allow: list[str] | None = Field(description="Names that focus may use; null: any.")
    focus_locked: bool = Field(description="Whether requests may not change the standing focus.")
    limits: dict[str, int | None] = Field(description="Limits by name; null: unlimited.")
    remaining: dict[str, float] = Field(description="What is left of each limit now; of budgets in micro-units.")
    when_exhausted: str = Field(description="What happens when a quota or a budget is used up: refuse, or step(...).")
    when_busy: str = Field(description="What happens while many wait for a model: never, or step(...).")
    plan: str | None = Field(description="Version of the price list that was signed; null where answers cost nothing.")
    currency: str | None = Field(description="That of prices, costs and budgets, all in its millionths.")


@router.get("/v1/entitlements", response_model=EntitlementsView, summary="What this key may do")
async def entitlements(gateway: Gateway, context: Context) -> EntitlementsView:
    """Level, disclosure, focus and limits of this key, and what is left of them."""
    own = context.caller
    tier, judgement = own.tier, await gateway.admission.look(own)
    down = limits.steps_down(own.when_exhausted, judgement)
    models = []
    for info in gateway.models_for(own):
        level = tier.level(info.id, info.floor)
        shown = tier.disclosure(level)
        models.append(
            ModelTerms(
                id=info.id,
                utility=level,
                utility_now=_now(own, down, level, info.floor),
                labels=shown.labels,
                digits=shown.digits,
                logprobs=shown.logprobs,
                lower_utility=tier.may_lower(level),
                focus_max=0.0 if tier.focus_locked else tier.focus_limit(level),
                standing_focus=dict(own.focus(info.id)),
            )
        )
    return EntitlementsView(
        tenant=own.tenant,
        name=own.name,
        tier=tier.name,
        key=own.key_prefix,
        models=models,
        focus_allow=None if tier.focus_allow is None else sorted(tier.focus_allow),
        focus_locked=tier.focus_locked,
        limits=own.limits.model_dump(exclude={"weight", "billing_day"}),
        remaining=limits.remaining(judgement),
        when_exhausted=str(own.when_exhausted),
        when_busy=str(own.when_busy),
        plan=own.plan.reference if own.plan else None,
        currency=own.plan.currency or None if own.plan else None,
    )


def _now(own: Entitlements, down: int | None, level: float, floor: float) -> float | None:
    if not down:
        return None if down is None else level
    return max(floor, min(level, own.when_exhausted.steps[down - 1].level))
