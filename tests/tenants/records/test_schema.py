import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants.records.fields import iso, parse_moment
from tenants.records.hashes import dump_key, dump_tenant, dump_terms, parse_key, parse_tenant, parse_tier
from tenants.records.schema import RecordError, Terms, TierRecord

DIGEST = "ab" * 32


def raw(**fields: str) -> dict[bytes, bytes]:
    return {name.replace("__", ":").encode(): value.encode() for name, value in fields.items()}


def test_a_tier_reads_every_field_of_the_design() -> None:
    fields = {
        "utility": "0.9",
        "utility:resnet18-cifar10": "0.8",
        "labels": "3",
        "digits": "4",
        "logprobs": "true",
        "lower_utility": "no",
        "weight": "2.5",
        "rpm": "600",
        "tpm": "100000",
        "concurrency": "8",
        "focus_max": "0.5",
        "focus_allow": "sky, pedestrian",
        "models": "a,b",
        "quota_requests_day": "1",
        "quota_images_month": "2",
        "quota_tokens_month": "unlimited",
    }
    terms = parse_tier("silver", {k.encode(): v.encode() for k, v in fields.items()}).terms
    assert terms.utility == 0.9
    assert terms.utility_by_model == {"resnet18-cifar10": 0.8}
    assert (terms.labels, terms.digits, terms.logprobs, terms.lower_utility) == (3, 4, True, False)
    assert (terms.weight, terms.rpm, terms.tpm, terms.concurrency) == (2.5, 600, 100000, 8)
    assert terms.focus_allow == frozenset({"sky", "pedestrian"})
    assert terms.models == frozenset({"a", "b"})
    assert (terms.quota_requests_day, terms.quota_images_month, terms.quota_tokens_month) == (1, 2, None)
    assert "quota_tokens_month" in terms.model_fields_set
    assert "quota_tokens_day" not in terms.model_fields_set


def test_a_focus_term_may_hold_colons_spaces_and_other_scripts() -> None:
    record = parse_tenant("acme", {b"tier": b"gold", "focus:m-1:ratio 4:3 é".encode(): b"-0.5"})
    assert record.standing_focus == {"m-1": {"ratio 4:3 é": -0.5}}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({b"utility": b"abc"}, "utility"),
        ({b"utility": b"0"}, "utility"),
        ({b"utility": b"1.01"}, "utility"),
        ({b"utility": b"nan"}, "utility"),
        ({b"utility": b"0.9", b"utility:m": b"2"}, "utility:m"),
        ({b"utility": b"0.9", b"utility:": b"0.5"}, "utility:"),
        ({b"utility": b"0.9", b"rpm": b"-1"}, "rpm"),
        ({b"utility": b"0.9", b"rpm": b"many"}, "rpm"),
        ({b"utility": b"0.9", b"rpn": b"5"}, "rpn"),
        ({b"utility": b"0.9", b"weight": b"0"}, "weight"),
        ({b"utility": b"0.9", b"focus_max": b"1"}, "focus_max"),
        ({b"utility": b"0.9", b"logprobs": b"perhaps"}, "logprobs"),
        ({b"utility": b"0.9", b"lower_utility": b"0.5"}, "lower_utility"),
        ({b"utility": b"\xff\xfe"}, "utility"),
        ({b"utility": b"0.9", b"\xff": b"1"}, "\\xff"),
        ({b"utility": b"0.9", b"utility_by_model": b"{}"}, "utility_by_model"),
        ({b"utility": b"0.9", b"focus:m:x": b"0.1"}, "focus:m:x"),
        ({b"rpm": b"5"}, "utility"),
    ],
)
def test_a_broken_tier_names_its_key_and_field(fields: dict[bytes, bytes], field: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_tier("silver", fields)
    assert (caught.value.key, caught.value.field) == ("tier:silver", field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "tier"),
        ({b"tier": b"gold", b"status": b"dormant"}, "status"),
        ({b"tier": b"gold", b"focus:m:sky": b"1"}, "focus:m:sky"),
        ({b"tier": b"gold", b"focus:sky": b"0.5"}, "focus:sky"),
        ({b"tier": b"gold", b"focus_locked": b"2"}, "focus_locked"),
        ({b"tier": b"gold", b"utility": b"x"}, "utility"),
        ({b"tier": b"gold", b"id": b"other"}, "id"),
        ({b"tier": b"gold", b"standing_focus": b"x"}, "standing_focus"),
    ],
)
def test_a_broken_tenant_names_its_key_and_field(fields: dict[bytes, bytes], field: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_tenant("acme", fields)
    assert (caught.value.key, caught.value.field) == ("tenant:acme", field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "tenant"),
        ({b"tenant": b"a}b"}, "tenant"),
        ({b"tenant": b"acme", b"expires_at": b"soon"}, "expires_at"),
        ({b"tenant": b"acme", b"secret": b"sk-hunter2"}, "secret"),
        ({b"tenant": b"acme", b"scopes": b"inference,admin"}, "scopes"),
        ({b"tenant": b"acme", b"scopes": b"model:"}, "scopes"),
        ({b"tenant": b"acme", b"rpm": b"-1"}, "rpm"),
    ],
)
def test_a_broken_key_names_its_key_and_field_and_repeats_no_value(fields: dict[bytes, bytes], field: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_key(DIGEST, fields)
    assert (caught.value.key, caught.value.field) == (f"apikey:{DIGEST}", field)
    assert "soon" not in str(caught.value) and "hunter2" not in str(caught.value)


def test_times_are_iso_8601_or_unix_seconds() -> None:
    assert parse_moment("2030-01-31T12:00:00Z") == parse_moment("2030-01-31T12:00:00") == parse_moment("1896091200")
    assert parse_moment(iso(1896091200.0)) == 1896091200.0


def test_a_record_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(RecordError("tier:x", "rpm", "is wrong")))
    assert (error.key, error.field, error.problem) == ("tier:x", "rpm", "is wrong")


names = st.text("abcXYZ019-_.", min_size=1, max_size=8).filter(lambda s: s[0].isalnum())
limits = st.none() | st.integers(0, 2**53)
words = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters=","), min_size=1, max_size=8).map(
    str.strip
)
terms_fields = st.fixed_dictionaries(
    {"utility": st.floats(0.01, 1.0)},
    optional={
        "utility_by_model": st.dictionaries(names, st.floats(0.01, 1.0), min_size=1, max_size=3),
        "labels": st.none() | st.integers(1, 100),
        "logprobs": st.booleans(),
        "lower_utility": st.booleans(),
        "weight": st.floats(0.01, 100.0),
        "rpm": limits,
        "quota_tokens_day": limits,
        "focus_max": st.floats(0.0, 0.99),
        "focus_allow": st.none() | st.frozensets(words.filter(lambda w: w not in ("", "*")), min_size=1, max_size=3),
    },
)


@given(terms_fields)
def test_what_is_written_reads_back_the_same(fields: dict[str, object]) -> None:
    terms = Terms.model_validate(fields)
    written = {name.encode(): value.encode() for name, value in dump_terms(terms).items()}
    assert parse_tier("t", written) == TierRecord(name="t", terms=terms)


def test_tenants_and_keys_read_back_the_same() -> None:
    tenant = parse_tenant("acme", raw(tier="gold", name="Acme", focus_locked="1", focus__m__sky="0.5", rpm="7"))
    again = {name.encode(): value.encode() for name, value in dump_tenant(tenant).items()}
    assert parse_tenant("acme", again) == tenant
    scopes = "inference,model:m-1"
    key = parse_key(DIGEST, raw(tenant="acme", label="ci", expires_at="2030-01-01T00:00:00Z", scopes=scopes, rpm="5"))
    again = {name.encode(): value.encode() for name, value in dump_key(key).items()}
    assert parse_key(DIGEST, again) == key
