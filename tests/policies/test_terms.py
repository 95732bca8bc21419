"""Tiers and requests resolved to a modulation."""

import math
import pickle

import pytest

from policies import Tier, errors, resolve, round_level
from policies.errors import InvalidRequest, LimitExceeded, NotEntitled, Unavailable
from policies.terms import Modulation

CLASSES = ("car", "pedestrian", "sky")


def tier(**fields: object) -> Tier:
    return Tier.model_validate({"name": "silver", "utility": 0.9} | fields)


def resolved(own: Tier, **request: object) -> Modulation:
    return resolve(own, "model", floor=0.1, classes=CLASSES, **request)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "level"), [(1.0, 1.0), (0.999, 0.99), (0.29, 0.29), (0.7, 0.7), (0.709, 0.7), (0.001, 0.01)]
)
def test_a_level_is_rounded_down_to_a_hundredth(asked: float, level: float) -> None:
    assert round_level(asked) == level


def test_a_tenants_own_level_applies_without_a_wish() -> None:
    assert resolved(tier()).utility == 0.9
    assert resolved(tier(utility_by_model={"model": 0.6})).utility == 0.6
    assert resolved(tier(utility=0.05)).utility == 0.1


def test_a_lower_level_can_be_asked_for_and_a_higher_one_not() -> None:
    assert resolved(tier(), utility=0.55).utility == 0.55
    with pytest.raises(NotEntitled) as refusal:
        resolved(tier(), utility=0.95)
    assert refusal.value.param == "utility"


@pytest.mark.parametrize("utility", [0.0, -0.5, 1.01, math.nan, math.inf, 0.05])
def test_a_level_out_of_range_is_named(utility: float) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        resolved(tier(), utility=utility)
    assert refusal.value.param == "utility"


def test_disclosure_is_part_of_the_level() -> None:
    gold, low = resolved(tier(utility=1.0)).disclosure, resolved(tier(utility=1.0), utility=0.8).disclosure
    assert (gold.labels, gold.digits, gold.logprobs) == (None, None, True)
    assert (low.labels, low.digits, low.logprobs) == (1, 0, False)


def test_a_tier_can_grant_more_disclosure() -> None:
    shown = resolved(tier(labels=5, digits=3, logprobs=True)).disclosure
    assert (shown.labels, shown.digits, shown.logprobs) == (5, 3, True)


def test_request_focus_adds_to_standing_focus_and_is_clamped() -> None:
    own = tier(focus_max=0.8)
    out = resolved(own, standing={"car": 0.5, "sky": -0.3}, focus={"car": 0.6, "sky": 0.3, "pedestrian": 0.2})
    assert out.focus == {"car": 0.8, "pedestrian": 0.2}


@pytest.mark.parametrize(
    ("fields", "focus", "error", "param"),
    [
        ({}, {"bus": 0.5}, InvalidRequest, "focus.bus"),
        ({}, {"car": 1.0}, InvalidRequest, "focus.car"),
        ({}, {"car": math.nan}, InvalidRequest, "focus.car"),
        ({"focus_max": 0.5}, {"car": 0.6}, NotEntitled, "focus.car"),
        ({"focus_max": 0.0}, {"car": 0.1}, NotEntitled, "focus"),
        ({"focus_locked": True}, {"car": 0.1}, NotEntitled, "focus"),
        ({"focus_allow": frozenset({"sky"})}, {"car": 0.1}, NotEntitled, "focus.car"),
    ],
)
def test_focus_outside_the_terms_is_refused(
    fields: dict[str, object], focus: dict[str, float], error: type[Exception], param: str
) -> None:
    with pytest.raises(error) as refusal:
        resolved(tier(**fields), focus=focus)
    assert getattr(refusal.value, "param", None) == param


def test_a_standing_focus_on_an_unknown_class_fails_closed() -> None:
    with pytest.raises(NotEntitled) as refusal:
        resolved(tier(), standing={"bus": 0.5})
    assert refusal.value.code == "entitlements_invalid"


def test_a_locked_tenant_keeps_its_standing_focus() -> None:
    assert resolved(tier(focus_locked=True), standing={"car": 0.4}).focus == {"car": 0.4}


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("no", param="x", code="c"),
        NotEntitled("no", code="c"),
        LimitExceeded("wait", retry_after=7, retry_soon=False, code="rate"),
        Unavailable("away", retry_after=3),
    ],
)
def test_errors_survive_pickling_between_actors(error: errors.ServiceError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and copy.__dict__ == error.__dict__ and str(copy) == str(error)
