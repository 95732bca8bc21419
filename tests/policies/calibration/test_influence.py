"""What one tenant's rows do to a level for the others."""

from __future__ import annotations

import math

import pytest
import torch

from policies.audit import Tally
from policies.calibration.influence import influences, worst


def tally(inputs: int, agreed: int) -> Tally:
    """So many inputs of one answer each."""
    return Tally.of_groups([1] * inputs, [1] * agreed + [0] * (inputs - agreed))


def test_influence_is_what_leaving_a_tenant_out_changes() -> None:
    """A fifth of the rows never agrees, so the others get 0.875 where all together get 0.7."""
    (odd, *_) = influences({0.7: {7: tally(200, 0), 8: tally(400, 350), 9: tally(400, 350)}})
    assert (odd.tenant, odd.level) == (7, 0.7) and odd.moved == pytest.approx(0.175)
    assert odd.bound == pytest.approx(0.02 + math.sqrt(0.875 * 0.125 / 799))
    assert odd.beyond == pytest.approx(0.175 - odd.bound)


def test_the_worst_is_the_one_furthest_beyond_its_bound_on_any_level() -> None:
    like = {n: tally(200, 140) for n in range(4)}
    assert worst({0.7: like | {9: tally(200, 150)}}) is None
    found = worst({0.7: like | {9: tally(200, 150)}, 0.5: {n: tally(200, 100) for n in like} | {9: tally(200, 200)}})
    assert found is not None and (found.tenant, found.level) == (9, 0.5) and found.moved == pytest.approx(-0.1)


def test_like_tenants_stay_within_their_bounds_whatever_their_parts() -> None:
    chance = torch.Generator().manual_seed(0)
    for _ in range(50):
        parts = [int(n) for n in torch.randint(1, 400, (8,), generator=chance)]
        drawn = {n: int((torch.rand(part, generator=chance) < 0.7).sum()) for n, part in enumerate(parts)}
        assert worst({0.7: {n: tally(parts[n], agreed) for n, agreed in drawn.items()}}) is None


def test_few_inputs_of_many_answers_buy_no_room() -> None:
    """A prompt whose answers went on and on is a fifth of all steps, and says nothing of how far its tenant may go."""
    like = {n: tally(200, 140) for n in range(4)}
    found = worst({0.7: like | {9: Tally.of(200, 20)}})
    assert found is not None and found.tenant == 9 and found.bound < 0.04


def test_of_a_single_tenant_nothing_can_be_said() -> None:
    assert influences({0.7: {1: tally(100, 0)}, 0.9: {}}) == []
