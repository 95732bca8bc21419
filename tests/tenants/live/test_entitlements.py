import pytest

from tenants.live.entitlements import Entitlements, digest, merge
from tenants.records.hashes import parse_key, parse_tenant, parse_tier


def merged(tier: dict[str, str], tenant: dict[str, str]) -> Entitlements:
    def raw(fields: dict[str, str]) -> dict[bytes, bytes]:
        return {name.encode(): value.encode() for name, value in fields.items()}

    return merge(
        parse_tenant("acme", raw({"tier": "silver", **tenant})),
        parse_tier("silver", raw({"utility": "0.9", **tier})),
        parse_key("00" * 32, raw({"tenant": "acme"})),
        "0" * 12,
    )


@pytest.mark.parametrize(
    ("tier", "tenant", "level"),
    [
        ({}, {}, 0.9),
        ({"utility:m": "0.5"}, {}, 0.5),
        ({"utility:m": "0.5"}, {"utility": "0.8"}, 0.8),
        ({"utility:m": "0.5"}, {"utility": "0.8", "utility:m": "0.6"}, 0.6),
        ({"utility:m": "0.5"}, {"utility:m": "0.6"}, 0.6),
        ({"utility:other": "0.5"}, {"utility:another": "0.6"}, 0.9),
    ],
)
def test_a_tenants_level_goes_before_its_tiers_and_one_for_a_model_before_one_for_all(
    tier: dict[str, str], tenant: dict[str, str], level: float
) -> None:
    assert merged(tier, tenant).tier.level("m") == level


def test_a_tenant_overrides_any_field_of_its_tier() -> None:
    tier = {
        "rpm": "60",
        "tpm": "5",
        "models": "a",
        "focus_max": "0.5",
        "focus_allow": "sky",
        "weight": "2",
        "labels": "2",
    }
    plain = merged(tier, {})
    assert (plain.limits.rpm, plain.limits.tpm, plain.limits.weight) == (60, 5, 2.0)
    assert (plain.models, plain.tier.focus_max, plain.tier.focus_allow, plain.tier.labels) == (
        frozenset({"a"}),
        0.5,
        frozenset({"sky"}),
        2,
    )
    own = merged(tier, {"rpm": "unlimited", "tpm": "7", "models": "*", "focus_max": "0.1", "focus_allow": "*"})
    assert (own.limits.rpm, own.limits.tpm, own.limits.concurrency) == (None, 7, None)
    assert own.may_use("anything") and not plain.may_use("b")
    assert (own.tier.focus_max, own.tier.focus_allow) == (0.1, None)


def test_disclosure_follows_the_level_unless_a_record_grants_more() -> None:
    default = merged({}, {}).tier.disclosure(0.9)
    assert (default.labels, default.digits, default.logprobs) == (1, 0, False)
    granted = merged({"labels": "all", "digits": "all", "logprobs": "yes"}, {}).tier.disclosure(0.9)
    assert granted.labels is not None and granted.labels > 10**6
    assert (granted.digits, granted.logprobs) == (16, True)


def test_what_a_request_may_change_follows_the_level_unless_a_record_says_more() -> None:
    default = merged({}, {}).tier
    assert (default.may_lower(1.0), default.may_lower(0.9)) == (True, False)
    assert (default.focus_limit(1.0), default.focus_limit(0.9)) == (0.99, 0.0)
    tier = merged({"lower_utility": "yes", "focus_max": "0.5"}, {}).tier
    assert tier.may_lower(0.9) and tier.focus_limit(0.9) == 0.5
    own = merged({"lower_utility": "yes", "focus_max": "0.5"}, {"lower_utility": "no", "focus_max": "0"}).tier
    assert not own.may_lower(1.0) and own.focus_limit(1.0) == 0.0


def test_standing_focus_is_by_model() -> None:
    own = merged({}, {"focus:seg:pedestrian": "0.9", "focus:seg:sky": "-0.2", "focus_locked": "yes"})
    assert own.focus("seg") == {"pedestrian": 0.9, "sky": -0.2}
    assert own.focus("other") == {}
    assert own.tier.focus_locked
    assert own.share().flow == "acme"


def test_the_version_changes_with_any_edit_but_the_last_use() -> None:
    records = [("tier:a", {b"utility": b"1"}), ("apikey:x", {b"tenant": b"t"})]
    version = digest(records)
    assert len(version) == 12 and int(version, 16) >= 0
    assert digest([records[0], ("apikey:x", {b"tenant": b"t", b"last_used": b"now"})]) == version
    assert digest([("tier:a", {b"utility": b"1.0"}), records[1]]) != version
    assert digest([("tier:b", {b"utility": b"1"}), records[1]]) != version
