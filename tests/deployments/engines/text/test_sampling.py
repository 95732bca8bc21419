from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deployments.engines.text.draws import DrawPlan, DrawTables
from deployments.engines.text.sampling import SamplingParams, gumbel, keep_top_k, keep_top_p, seed_key, step_keys

SECRET = b"of the draws"
GREEDY = SamplingParams(max_tokens=1, temperature=0.0)


class Rows:
    """Tables with a sequence on each of the first seats."""

    def __init__(self, params: list[SamplingParams], vocabulary: int, seeds: list[int] | None = None) -> None:
        self.tables = DrawTables(len(params), vocabulary, torch.device("cpu"))
        for seat, own in enumerate(params):
            self.tables.write(seat, own, seed_key(SECRET, seeds[seat] if seeds else seat))
        self.plan = DrawPlan.of(dict(enumerate(params)))
        self.slots = torch.arange(len(params))

    def scores(self, logits: Tensor) -> Tensor:
        return self.tables.scores(logits, self.slots, self.plan)


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=1, **fields)


def frequencies(logits: Tensor, count: int = 6_000, **fields: Any) -> Tensor:
    rows = Rows([params(**fields)] * count, len(logits))
    chosen = rows.scores(logits.repeat(count, 1)).argmax(dim=1)
    return torch.bincount(chosen, minlength=logits.shape[0]) / count


def test_temperature_zero_leaves_the_logits_alone() -> None:
    logits = torch.randn(3, 10)
    assert Rows([GREEDY] * 3, 10).scores(logits) is logits


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    expected = (logits / temperature).softmax(0)
    torch.testing.assert_close(frequencies(logits, temperature=temperature), expected, atol=0.025, rtol=0.0)


def test_top_p_keeps_the_smallest_nucleus() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    expected = torch.tensor([0.625, 0.375, 0.0, 0.0])
    torch.testing.assert_close(frequencies(logits, top_p=0.8), expected, atol=0.025, rtol=0.0)


def test_top_p_keeps_what_a_sort_would_keep() -> None:
    scores = torch.randn(40, 3000) * 3
    p = torch.linspace(0.01, 1.0, 40)
    kept = torch.isfinite(keep_top_p(scores, p))
    ordered, order = scores.softmax(1).sort(descending=True)
    wanted = torch.zeros_like(kept).scatter(1, order, ordered.cumsum(1) - ordered < p[:, None])
    assert kept[-1].all()
    # A sum in another order may pass p one token sooner or later.
    assert int((kept[:-1] != wanted[:-1]).sum(dim=1).max()) <= 1
    assert float((kept[:-1] == wanted[:-1]).all(dim=1).float().mean()) > 0.8


def test_top_k_keeps_the_most_likely_of_each_row() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 3)
    kept = torch.isfinite(keep_top_k(scores, torch.tensor([2, 0, 9]), most=9))
    assert kept.sum(dim=1).tolist() == [2, 4, 4]
    assert frequencies(scores[0], top_k=2)[2:].sum() == 0


def test_a_draw_depends_on_seed_and_step_and_not_on_the_batch() -> None:
    logits = torch.randn(4, 1000)
    asked = [params(), params(top_p=0.9), params(temperature=0.7, top_k=50), GREEDY]
    together = Rows(asked, 1000, seeds=[1, 2, 3, 4])
    first, second = together.scores(logits), None
    together.tables.drawn(first.argmax(dim=1), together.slots, together.plan)
    second = together.scores(logits)
    for row in range(4):
        alone = Rows([asked[row]], 1000, seeds=[row + 1])
        assert torch.equal(alone.scores(logits[row : row + 1])[0], first[row])
    assert torch.equal(first[3], logits[3]) and torch.equal(second[3], logits[3])
    assert not torch.equal(first[0], second[0])


def test_choices_of_one_seed_differ_and_repeat() -> None:
    assert seed_key(SECRET, 7) == seed_key(SECRET, 7, 0) != seed_key(SECRET, 7, 1) == seed_key(SECRET, 7, 1)
    assert seed_key(SECRET, 7) != seed_key(b"another", 7)
    keys = step_keys(torch.tensor([seed_key(SECRET, 7)] * 3), torch.tensor([0, 1, 2]))
    assert len(set(keys.tolist())) == 3


def test_penalties_count_what_the_answer_has() -> None:
    asked = [params(temperature=0.0, frequency_penalty=0.5, presence_penalty=0.25), GREEDY]
    rows, logits = Rows(asked, 4), torch.zeros(2, 4)
    for token in (1, 1, 2):
        rows.tables.drawn(torch.tensor([token, token]), rows.slots, rows.plan)
    assert rows.scores(logits).tolist() == [[0.0, -1.25, -0.75, 0.0], [0.0] * 4]


def test_a_bias_is_added_and_gone_with_its_sequence() -> None:
    asked = [params(temperature=0.0, logit_bias=((2, 5.0), (3, -100.0))), GREEDY]
    rows, logits = Rows(asked, 4), torch.zeros(2, 4)
    assert rows.scores(logits).tolist() == [[0.0, 0.0, 5.0, -100.0], [0.0] * 4]
    rows.tables.write(0, params(temperature=0.0, presence_penalty=1.0), key=0)
    assert rows.scores(logits).tolist() == [[0.0] * 4] * 2


def test_a_plan_asks_for_no_more_than_somebody_needs() -> None:
    assert DrawPlan.of({0: GREEDY, 1: GREEDY}) == DrawPlan()
    assert DrawPlan.of({0: params(temperature=0.0, top_p=0.5)}) == DrawPlan()
    asked = {0: params(top_k=5, logprobs=0), 1: params(top_p=0.9, logprobs=3, presence_penalty=1.0), 2: GREEDY}
    assert DrawPlan.of(asked) == DrawPlan(random=True, top_k=5, top_p=True, adjusts=True, logprobs=3)


def test_gumbel_noise_is_standard_and_finite() -> None:
    noise = gumbel(torch.arange(100) * 12345 - 99, 20_000)
    assert torch.isfinite(noise).all()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.std()) == pytest.approx(1.2825, abs=0.01)
