"""Sampling parameters that OpenAI does not have, judged by transformers' own processors, a row a sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
)

from deployments.engines.text.draws import DrawPlan, DrawTables
from deployments.engines.text.sampling import SamplingParams, keep_min_p

V = 50


def greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=9, temperature=0.0, **fields)


@pytest.mark.parametrize("penalty", [0.5, 1.1, 2.0])
def test_a_repetition_penalty_is_what_transformers_makes_of_it(penalty: float) -> None:
    prompt, answer = [3, 4, 4, 49], [7, 3]
    rows = [greedy(repetition_penalty=penalty), greedy()]
    tables = DrawTables(2, V, torch.device("cpu"))
    for seat, params in enumerate(rows):
        tables.write(seat, params, 0, prompt)
    plan, slots, logits = DrawPlan.of(dict(enumerate(rows))), torch.arange(2), torch.randn(2, V) * 5
    for token in answer:
        tables.drawn(torch.tensor([token, token]), slots, plan)
    scores = tables.scores(logits, slots, plan)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + answer]), logits[:1].clone())
    torch.testing.assert_close(scores[:1], theirs)
    assert torch.equal(scores[1], logits[1]), "another's row"
    tables.write(0, greedy(), 0, prompt)
    assert torch.equal(tables.scores(logits, slots, plan), logits), "gone with its sequence"


def test_the_least_probability_is_what_transformers_makes_of_it() -> None:
    scores, p = torch.randn(40, V) * 3, torch.linspace(0.001, 1.0, 40)
    kept = keep_min_p(scores, p)
    for row in range(40):
        theirs = MinPLogitsWarper(float(p[row]))(torch.zeros(1, 0), scores[row : row + 1].clone())
        assert torch.equal(torch.isfinite(kept[row]), torch.isfinite(theirs[0]))
    assert torch.isfinite(keep_min_p(scores, torch.zeros(40))).all()


def test_an_answer_does_not_end_before_its_least_tokens() -> None:
    ends, least = [0, 9], 3
    rows = [greedy(min_tokens=least), greedy()]
    tables = DrawTables(2, V, torch.device("cpu"), ends)
    for seat, params in enumerate(rows):
        tables.write(seat, params, 0)
    plan, slots = DrawPlan.of(dict(enumerate(rows))), torch.arange(2)
    theirs = MinNewTokensLengthLogitsProcessor(2, least, ends, device="cpu")
    for step in range(least + 2):
        logits = torch.randn(2, V)
        scores = tables.scores(logits, slots, plan)
        assert torch.equal(scores[0], theirs(torch.zeros(1, 2 + step), logits[:1].clone())[0])
        assert torch.equal(scores[1], logits[1])
        tables.drawn(scores.argmax(dim=1), slots, plan)


def test_a_plan_knows_what_somebody_needs() -> None:
    assert DrawPlan.of({0: greedy(min_p=0.5)}) == DrawPlan()
    asked = {0: SamplingParams(max_tokens=1, min_p=0.1), 1: greedy(repetition_penalty=1.1), 2: greedy(min_tokens=2)}
    assert DrawPlan.of(asked) == DrawPlan(random=True, min_p=True, repeats=True, least=True)
