"""Ladders: how they are written, and what is none."""

import pytest

from tenants.records.hashes import dump_tenant, parse_tenant
from tenants.records.ladders import NEVER, REFUSE, Ladder, busy, exhausted, levels_of
from tenants.records.schema import RecordError


def steps(ladder: Ladder) -> list[tuple[float, int | None]]:
    return [(step.level, step.number) for step in ladder.steps]


def test_a_step_has_a_share_of_each_quota_and_budget_and_a_last_one_without_has_no_end() -> None:
    for text, top, wanted in (
        ("step(0.9:20%, 0.7)", 80, [(0.9, 20), (0.7, None)]),
        ("step(0.9, 0.7)", 90, [(0.9, 10), (0.7, None)]),
        ("step( 0.9:20% ,0.70:5% )", 75, [(0.9, 20), (0.7, 5)]),
        ("step(0.7)", 100, [(0.7, None)]),
        ("refuse", 100, []),
    ):
        ladder = exhausted(text)
        assert (ladder.percents[0], steps(ladder)) == (top, wanted)
        assert exhausted(str(ladder)) == ladder
    assert steps(busy("step(0.9, 0.7, 0.5:100)")) == [(0.9, 16), (0.7, 32), (0.5, 100)]
    assert (exhausted("refuse"), busy("never")) == (REFUSE, NEVER)
    assert levels_of("step(0.9:20%, 0.7)") == levels_of("step(0.9:5, 0.7)") == {0.9, 0.7}
    assert levels_of("step(") == set()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected step"),
        ("step()", "expected levels"),
        ("step 0.9", "expected step"),
        ("step(1.0)", "expected levels"),
        ("step(0.905)", "expected levels"),
        ("step(0.0)", "expected levels"),
        ("step(gold)", "expected levels"),
        ("step(0.7, 0.9)", "lower level than the one before"),
        ("step(0.9, 0.90)", "lower level than the one before"),
        ("step(0.9:20)", "expected a percentage"),
        ("step(0.9:x%)", "expected a percentage"),
        ("step(0.9:0%)", "1% or more"),
        ("step(0.9:60%, 0.7:40%)", "leave 1% or more above"),
        ("step(" + ", ".join(f"0.{n}" for n in range(99, 89, -1)) + ")", "8 steps at most"),
    ],
)
def test_what_is_no_ladder_is_refused_by_its_field(text: str, problem: str) -> None:
    with pytest.raises(RecordError, match=problem) as caught:
        parse_tenant("acme", {b"tier": b"gold", b"when_exhausted": text.encode()})
    assert caught.value.field == "when_exhausted"


@pytest.mark.parametrize("text", ["step(0.9:20%)", "step(0.9:0)", "step(0.9:5, 0.7:5)", "refuse"])
def test_a_step_of_a_busy_model_names_how_many_must_wait(text: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_tenant("acme", {b"tier": b"gold", b"when_busy": text.encode()})
    assert caught.value.field == "when_busy"


def test_a_record_writes_its_ladders_as_they_were() -> None:
    raw = {b"tier": b"gold", b"when_exhausted": b"step(0.9:20%, 0.7)", b"when_busy": b"step(0.9:5)"}
    fields = dump_tenant(parse_tenant("acme", raw))
    assert fields["when_exhausted"] == "step(0.9:20%, 0.7)" and fields["when_busy"] == "step(0.9:5)"
