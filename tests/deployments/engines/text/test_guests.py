"""How long the text engine's steps become by others' prompts, on a clock of arithmetic: tokens and milliseconds."""

from __future__ import annotations

import pytest

from deployments.engines.text.guests import SHARE, Guests, StepSizes
from deployments.engines.text.token_shares import TokenShares

SIZES = StepSizes(alone=128, company=64, guests=32)
BASE_S, TOKEN_S = 0.065, 0.0025
"""What a step takes, and each token of a prompt in it."""


class Engine:
    """Flows that decode for ever, and flows with prompts without an end."""

    def __init__(self, decoding: tuple[str, ...] = (), reading: tuple[str, ...] = ()) -> None:
        self.now, self.shares = 0.0, TokenShares()
        self.guests = Guests(SIZES, clock=lambda: self.now)
        self.decoding, self.reading = decoding, reading
        self.read: dict[str, int] = dict.fromkeys(reading, 0)
        for flow in (*decoding, *reading):
            self.shares.join(flow, 1.0)

    def step(self) -> float:
        chosen = [(flow, True, 1) for flow in self.decoding]
        order = self.shares.order([(flow, 1000, flow) for flow in self.reading])
        chosen += [(flow, False, 1000) for flow in order]
        budget, began = self.guests.budget(chosen, self.shares, 2048), self.now
        for flow, decodes, tokens in chosen:
            taken = min(tokens, budget)
            budget -= taken
            self.shares.charge(flow, taken)
            self.now += 0.0 if decodes else TOKEN_S * taken
            if not decodes:
                self.read[flow] += taken
        self.now += BASE_S
        return self.now - began


def test_a_flow_alone_reads_in_whole_steps_also_beside_its_own_answers() -> None:
    engine = Engine(decoding=("a",), reading=("a",))
    engine.step()
    assert engine.read["a"] == SIZES.alone - 1


def test_a_flood_of_prompts_takes_its_share_of_another_flows_time_and_no_more() -> None:
    engine = Engine(decoding=("quiet",), reading=("flood",))
    steps = [engine.step() for _ in range(400)]
    assert sum(steps) / len(steps) == pytest.approx(BASE_S * (1 + SHARE), rel=0.05)
    assert max(steps[2:]) <= BASE_S + TOKEN_S * SIZES.guests + 1e-9
    assert engine.read["flood"] > 0, "it goes on"


def test_who_comes_anew_reads_a_steps_worth_at_once_and_not_again_while_it_stays() -> None:
    engine = Engine(decoding=("busy",), reading=("new",))
    engine.step()
    assert engine.read["new"] == SIZES.company - 1
    engine.step()
    assert engine.read["new"] <= SIZES.company + SIZES.guests
    engine.reading, before = (), engine.read["new"]
    engine.now += 11.0
    engine.step()
    engine.reading = ("new",)
    engine.step()
    assert engine.read["new"] - before == SIZES.company - 1


def test_who_has_been_served_much_less_is_no_guest() -> None:
    engine = Engine(decoding=("busy",), reading=("new",))
    engine.shares.charge("busy", 10 * SIZES.company)
    engine.step()
    assert engine.read["new"] == SIZES.company - 1
    for _ in range(20):
        engine.step()
    assert engine.read["new"] < 12 * SIZES.company, "until it has caught up"


def test_prompts_of_two_flows_take_turns_in_short_steps_and_are_read_as_fast_as_before() -> None:
    engine = Engine(reading=("a", "b"))
    steps = [engine.step() for _ in range(100)]
    assert engine.read["a"] == pytest.approx(engine.read["b"], rel=0.1)
    assert max(steps) <= BASE_S + TOKEN_S * SIZES.company + 1e-9
    assert sum(engine.read.values()) > 0.9 * 100 * SIZES.company


def test_a_while_after_another_flow_was_there_a_flood_reads_in_whole_steps_again() -> None:
    engine = Engine(decoding=("quiet",), reading=("flood",))
    engine.step()
    engine.decoding = ()
    assert engine.step() == pytest.approx(BASE_S + TOKEN_S * SIZES.company)
    engine.now += 11.0
    assert engine.step() == pytest.approx(BASE_S + TOKEN_S * SIZES.alone)
