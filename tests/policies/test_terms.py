"""Tiers and requests resolved to a modulation."""

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import Tier, errors, resolve, round_level
from policies.errors import InvalidRequest, LimitExceeded, NotEntitled, Unavailable
from policies.spelling import term_of
from policies.terms import FOCUS_LIMIT, FOCUS_MAX_BELOW, Modulation
from tests.policies.test_spelling import spellings_of

CLASSES = ("car", "pedestrian", "sky")
TERMS = ("ocean", "New York", "straße", "pâté", "海")


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


def refused(own: Tier, code: str, **request: object) -> NotEntitled:
    with pytest.raises(NotEntitled) as refusal:
        resolved(own, **request)
    assert refusal.value.code == code
    return refusal.value


def test_a_higher_level_cannot_be_asked_for_and_a_lower_one_where_it_is_granted() -> None:
    above = refused(tier(), "utility_not_entitled", utility=0.95)
    assert above.param == "utility" and above.message.endswith("ask for 0.9.")
    below = refused(tier(), "lower_utility_not_entitled", utility=0.55)
    assert below.param == "utility" and "0.9" in below.message and "'lower_utility'" in below.message
    assert resolved(tier(lower_utility=True), utility=0.55).utility == 0.55
    assert refused(tier(lower_utility=True), "utility_not_entitled", utility=0.95).message.endswith("or less.")
    assert resolved(tier(utility=1.0), utility=0.55).utility == 0.55, "granted at level 1.0 unless it is taken"
    refused(tier(utility=1.0, lower_utility=False), "lower_utility_not_entitled", utility=0.55)


def test_whether_a_lower_level_is_granted_is_decided_by_the_models_own() -> None:
    refused(tier(utility=1.0, utility_by_model={"model": 0.9}), "lower_utility_not_entitled", utility=0.8)
    assert resolved(tier(utility=0.5, utility_by_model={"model": 1.0}), utility=0.8).utility == 0.8


@pytest.mark.parametrize(
    ("sold", "asked", "level"), [(0.9, 0.9, 0.9), (0.9, 0.909, 0.9), (0.709, 0.7, 0.7), (0.05, 0.1, 0.1)]
)
def test_ones_own_level_may_always_be_asked_for(sold: float, asked: float, level: float) -> None:
    assert resolved(tier(utility=sold, lower_utility=False), utility=asked).utility == level


@given(st.floats(0.01, 1.0), st.none() | st.booleans(), st.floats(0.01, 1.0))
def test_a_request_gets_its_own_level_or_a_lower_one_that_is_granted_or_nothing(
    sold: float, granted: bool | None, asked: float
) -> None:
    terms = tier(utility=sold, lower_utility=granted)
    own, wanted = terms.level("model", 0.1), round_level(asked)
    may = own == 1.0 if granted is None else granted
    try:
        level = resolved(terms, utility=asked).utility
    except NotEntitled as error:
        if error.code == "utility_not_entitled":
            assert wanted > own
        else:
            assert error.code == "lower_utility_not_entitled" and 0.1 <= wanted < own and not may
    except InvalidRequest:
        assert wanted < 0.1
    else:
        assert level == wanted and (wanted == own or (wanted < own and may))


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
        ({"utility": 1.0}, {"bus": 0.5}, InvalidRequest, "focus.bus"),
        ({"utility": 1.0}, {"car": 1.0}, InvalidRequest, "focus.car"),
        ({"utility": 1.0}, {"car": math.nan}, InvalidRequest, "focus.car"),
        ({"utility": 1.0}, {"car": 0.995}, NotEntitled, "focus.car"),
        ({"utility": 1.0}, {"Car": 0.5}, InvalidRequest, "focus.Car"),
        ({"utility": 1.0}, {" car": 0.5}, InvalidRequest, "focus. car"),
        ({}, {"car": 0.1}, NotEntitled, "focus"),
        ({}, {"car": -0.1}, NotEntitled, "focus"),
        ({"focus_max": 0.5}, {"car": 0.6}, NotEntitled, "focus.car"),
        ({"focus_max": 0.0}, {"car": 0.1}, NotEntitled, "focus"),
        ({"focus_locked": True}, {"car": 0.1}, NotEntitled, "focus"),
        ({"utility": 1.0, "focus_allow": frozenset({"sky"})}, {"car": 0.1}, NotEntitled, "focus.car"),
        ({"utility": 1.0, "focus_allow": frozenset({"Car"})}, {"car": 0.1}, NotEntitled, "focus.car"),
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


def test_the_default_of_focus_max_follows_the_tenants_own_level_of_the_model() -> None:
    own = tier(utility=1.0, utility_by_model={"model": 0.99})
    assert (own.focus_limit(1.0), own.focus_limit(0.99)) == (FOCUS_LIMIT, FOCUS_MAX_BELOW) == (0.99, 0.0)
    assert "'focus_max'" in refused(own, "focus_not_entitled", focus={"car": 0.1}).message
    lowered = resolved(tier(utility=1.0), utility=0.5, focus={"car": 0.9})
    assert (lowered.utility, lowered.focus) == (0.5, {"car": 0.9}), "who may see all logits may turn a lower level too"
    assert resolved(tier(focus_max=0.3), focus={"car": 0.3}).focus == {"car": 0.3}
    assert refused(tier(utility=1.0, focus_max=0.3), "focus_not_entitled", focus={"car": 0.31}).param == "focus.car"


def test_a_default_lets_a_standing_focus_be_and_a_limit_that_is_set_does_not() -> None:
    assert resolved(tier(), standing={"car": 0.9, "sky": -0.5}).focus == {"car": 0.9, "sky": -0.5}
    refused(tier(), "focus_not_entitled", standing={"car": 0.9}, focus={"car": 0.05})
    assert resolved(tier(focus_max=0.3), standing={"car": 0.9}).focus == {"car": 0.3}
    assert resolved(tier(focus_max=0.0), standing={"car": 0.9}).focus == {}
    assert resolved(tier(utility=1.0), standing={"car": 0.999}).focus == {"car": FOCUS_LIMIT}


def worded(own: Tier, **request: object) -> Modulation:
    return resolve(own, "text", floor=0.1, classes=None, **request)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other", ["Ocean", " ocean", "OCEAN", "ｏｃｅａｎ", "oc\u00adean", "ocean\u200b", "ocean\ufe0f"]
)
def test_a_strength_counts_once_however_its_word_is_spelt(other: str) -> None:
    own = tier(focus_max=0.3)
    assert list(worded(own, focus={"ocean": 0.1, other: 0.2}).focus.values()) == pytest.approx([0.3])
    for strengths in ((0.3, 0.3), (-0.3, -0.1), (0.9, -0.9)):
        with pytest.raises(NotEntitled) as refusal:
            worded(own, focus=dict(zip(("ocean", other), strengths, strict=True)))
        assert refusal.value.code == "focus_not_entitled"
    assert worded(own, standing={"ocean": 0.3}, focus={other: 0.3}).focus == {"ocean": 0.3}
    assert worded(tier(focus_max=0.3, focus_allow=frozenset({"ocean"})), focus={other: 0.2}).focus == {"ocean": 0.2}
    assert worded(own, standing={"ocean": 0.3}, focus={other: -0.3}).focus == {}


def test_a_word_of_nothing_visible_is_refused_and_one_that_is_spelt_in_its_own_way_is_kept() -> None:
    for name in ("\u200b", " \u00ad "):
        with pytest.raises(InvalidRequest) as refusal:
            worded(tier(focus_max=0.9), focus={name: 0.1})
        assert refusal.value.param == f"focus.{name}"
    assert worded(tier(focus_max=0.9), focus={"NASA": 0.5, "New York": 0.5}).focus == {"NASA": 0.5, "New York": 0.5}


strengths = st.floats(-0.99, 0.99)
spelt = st.dictionaries(st.sampled_from(TERMS).flatmap(spellings_of), strengths, max_size=6)


@given(spelt, spelt, st.none() | st.floats(0.0, 0.99), st.sampled_from([0.9, 1.0]), st.booleans())
def test_no_spelling_takes_a_term_beyond_its_limit(
    standing: dict[str, float], asked: dict[str, float], most: float | None, level: float, narrow: bool
) -> None:
    own = tier(utility=level, focus_max=most, focus_allow=frozenset(TERMS[:2]) if narrow else None)
    limit = own.focus_limit(level)
    try:
        found = worded(own, standing=standing, focus=asked).focus
    except NotEntitled:
        outside = narrow and {term_of(name) for name in asked} - {term_of(name) for name in TERMS[:2]}
        total = [abs(sum(f for name, f in asked.items() if term_of(name) == term_of(own))) for own in asked]
        assert asked and (outside or not limit or max(map(abs, [*asked.values(), *total])) > limit)
        return
    terms = [term_of(name) for name in found]
    assert len(set(terms)) == len(terms)
    for name, strength in found.items():
        mine = sum(f for other, f in standing.items() if term_of(other) == term_of(name))
        assert abs(strength) <= (limit if most is not None else max(limit, min(FOCUS_LIMIT, abs(mine))))
        assert name in {*standing, *asked, *TERMS} and (not narrow or name in {*TERMS[:2], *standing})


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


def test_a_class_may_be_named_by_its_first_synonym_and_counts_once() -> None:
    fish = ("tench, Tinca tinca", "goldfish, Carassius auratus")
    own = Tier(name="t", utility=1.0, focus_max=0.6, focus_allow=frozenset({"tench"}))
    found = resolve(own, "m", floor=0.1, classes=fish, standing={"tench": 0.2}, focus={"tench, Tinca tinca": 0.3})
    assert found.focus == {"tench, Tinca tinca": 0.5}
    with pytest.raises(errors.NotEntitled):
        resolve(own, "m", floor=0.1, classes=fish, focus={"tench": 0.4, "tench, Tinca tinca": 0.4})
    with pytest.raises(errors.NotEntitled, match="goldfish"):
        resolve(own, "m", floor=0.1, classes=fish, focus={"goldfish": 0.1})
