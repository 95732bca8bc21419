"""Fairness of the text engine, on an engine of arithmetic: steps are counted, not timed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest

from deployments.engines.text.admission import WaitingLine, Work, step_rows
from deployments.engines.text.token_shares import TokenShares
from policies.errors import Unavailable

ROWS, TOKENS, PAGE = 4, 32, 16


@dataclass(eq=False)
class Ask:
    flow: str
    prompt: int
    answer: int
    weight: float = 1.0
    came: int = 0
    read: int = 0
    written: int = 0
    last: int = -1
    first_token: int | None = None
    times: list[int] = field(default_factory=list)

    @property
    def pages(self) -> int:
        return -(-(self.prompt + self.answer) // PAGE)


class Engine:
    """Reads prompts in parts and writes a token a row and step, as the real one does."""

    def __init__(self, pages: int = 1000, bound: int = 1000) -> None:
        self.shares = TokenShares()
        self.line = WaitingLine[Ask](self.shares, bound=bound, rows=ROWS, pages=pages)
        self.resident: list[Ask] = []
        self.steps = 0
        self.served: Counter[str] = Counter()
        self.rows: list[int] = []

    def ask(self, flow: str, prompt: int, answer: int, weight: float = 1.0) -> Ask:
        ask = Ask(flow, prompt, answer, weight, came=self.steps)
        self.line.push(flow, weight, ask.pages, ask)
        return ask

    def step(self) -> None:
        while ask := self.line.pop():
            self.resident.append(ask)
        work = [Work(a.flow, max(1, a.prompt - a.read), a.read == a.prompt, a.last, a) for a in self.resident]
        budget = TOKENS
        chosen = step_rows(self.shares, work, rows=ROWS, tokens=TOKENS)
        for ask in chosen:
            tokens = 1 if ask.read == ask.prompt else min(budget, ask.prompt - ask.read)
            self.advance(ask, tokens)
            budget -= tokens
        assert budget >= 0
        self.rows.append(len(chosen))
        self.steps += 1

    def advance(self, ask: Ask, tokens: int) -> None:
        self.shares.charge(ask.flow, tokens)
        self.served[ask.flow] += tokens
        ask.last = self.steps
        if ask.read < ask.prompt:
            ask.read += tokens
        if ask.read == ask.prompt:
            ask.written += 1
            ask.times.append(self.steps)
            ask.first_token = self.steps if ask.first_token is None else ask.first_token
            if ask.written == ask.answer:
                self.resident.remove(ask)
                self.line.release(ask.flow, ask.pages)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()


def test_a_flood_does_not_delay_another_tenants_single_prompt() -> None:
    engine = Engine()
    for _ in range(100):
        engine.ask("flood", 10, 200)
    engine.run(50)
    for _ in range(20):
        quiet = engine.ask("quiet", 10, 20)
        engine.run(60)
        assert quiet.first_token == quiet.came, "the first token comes in the very next step"
        assert quiet.written == 20 and quiet.times[-1] - quiet.came <= 22, "and then one each step, nearly"


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_tokens_of_two_floods_follow_their_weights(weight: float) -> None:
    engine = Engine()
    for _ in range(150):
        engine.ask("light", 40, 30)
        engine.ask("heavy", 5, 80, weight)
    engine.run(500)
    assert engine.line.free_seats and len(engine.line) > 50
    assert engine.served["heavy"] / engine.served["light"] == pytest.approx(weight, rel=0.1)


def test_idle_capacity_is_used() -> None:
    engine = Engine()
    for _ in range(30):
        engine.ask("alone", 4, 50)
    engine.run(100)
    assert set(engine.rows[5:]) == {ROWS}
    assert engine.served["alone"] == pytest.approx(ROWS * 100, rel=0.2)


def test_a_tenant_that_was_idle_keeps_no_credit_and_one_that_was_served_keeps_its_debt() -> None:
    engine = Engine()
    engine.ask("early", 4, 40)
    engine.run(60)
    for _ in range(50):
        engine.ask("steady", 4, 40)
    engine.run(100)
    before = engine.served.copy()
    for _ in range(50):
        engine.ask("early", 4, 40)
    engine.run(100)
    gained = engine.served - before
    assert gained["early"] / gained["steady"] == pytest.approx(1.0, rel=0.1)
    engine.shares.charge("early", 500)
    before = engine.served.copy()
    engine.run(20)
    assert (engine.served - before)["early"] == 0


def test_a_long_prompt_is_read_beside_short_ones_of_its_tenant_and_of_others() -> None:
    engine = Engine()
    for _ in range(100):
        engine.ask("short", 30, 5)
        engine.ask("mixed", 30, 5)
    long = engine.ask("mixed", 800, 5)
    other = engine.ask("other", 800, 5)
    engine.run(150)
    assert other.written == 5
    engine.run(600)
    assert long.written == 5, "it was behind 100 of its own, and is not starved"
    assert len(engine.line) == 0


def test_what_is_next_and_large_is_waited_for() -> None:
    engine = Engine(pages=20)
    for _ in range(60):
        engine.ask("small", 8, 60)
    engine.run(10)
    large = engine.ask("large", 200, 110)
    assert large.pages == 20
    engine.run(800)
    assert large.written > 0
    assert engine.served["small"] > 0


def test_no_tenant_can_hold_every_seat_or_all_memory() -> None:
    engine = Engine(pages=64)
    for flow in "abcde":
        for _ in range(20):
            engine.ask(flow, 8, 40)
        engine.step()
        assert engine.line.free_seats > 0 and engine.line.free_pages > 0
    newcomer = engine.ask("newcomer", 8, 8)
    engine.step()
    assert newcomer in engine.resident


def test_streams_of_one_tenant_advance_alike_when_rows_are_short() -> None:
    engine = Engine()
    asks = [engine.ask("a", 4, 100) for _ in range(4)] + [engine.ask("b", 4, 100) for _ in range(4)]
    engine.run(60)
    written = [ask.written for ask in asks]
    assert max(written) - min(written) <= 2
    gaps = [later - earlier for ask in asks for earlier, later in zip(ask.times, ask.times[1:], strict=False)]
    assert max(gaps) <= 4


def test_a_waiting_request_can_be_taken_back_and_everything_is_given_back() -> None:
    engine = Engine(bound=3)
    asks = [engine.ask("a", 4, 4) for _ in range(3)]
    with pytest.raises(Unavailable):
        engine.ask("a", 4, 4)
    assert engine.line.discard("a", asks[1]) and not engine.line.discard("a", asks[1])
    assert not engine.line.discard("nobody", asks[0])
    engine.run(10)
    assert asks[0].written == asks[2].written == 4 and asks[1].written == 0
    assert (len(engine.line), engine.line.free_seats, engine.line.free_pages) == (0, ROWS * 4, 1000)
    engine.ask("a", 4, 4)
    assert len(engine.line.drain()) == 1 and len(engine.line) == 0
