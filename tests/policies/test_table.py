"""A step by tables answers what the layer answers row by row, with static shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from policies import Calibration, ModulatedLayer, RowTerms
from policies.table import TermsTable

SECRET = b"the secret of this installation"
FEATURES, CLASSES, SEATS = 16, 40, 6


def inputs(count: int) -> Tensor:
    return 3.0 * torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(count))


def wrapped(dtype: torch.dtype = torch.float32) -> ModulatedLayer:
    torch.manual_seed(0)
    final = nn.Linear(FEATURES, CLASSES).requires_grad_(False)
    x = inputs(300)
    calibration = Calibration.fit(SECRET, "model", x, final(x), depth=16, tolerance=0.05, contention=20)
    return ModulatedLayer(final.to(dtype), calibration, SECRET, contention=20)


LAYERS = {dtype: wrapped(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)}
TERMS = st.builds(
    RowTerms,
    st.sampled_from([1.0, 0.95, 0.8, 0.7, 0.5]),
    st.dictionaries(st.integers(0, CLASSES - 1), st.floats(-0.95, 0.95), max_size=5),
)


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(list(LAYERS)),
    moves=st.lists(st.tuples(st.integers(0, SEATS - 1), st.none() | TERMS), max_size=20),
)
def test_a_step_answers_as_the_layer_does_whoever_came_and_went(
    dtype: torch.dtype, moves: list[tuple[int, RowTerms | None]]
) -> None:
    layer = LAYERS[dtype]
    table, seated = TermsTable(layer, SEATS), dict[int, RowTerms]()
    for seat, terms in moves:
        if terms is None:
            table.clear(seat)
            seated.pop(seat, None)
        else:
            table.set(seat, terms)
            seated[seat] = terms
    order = [3, -1, 0, 5, 1, 4, 2, -1]
    x = inputs(len(order)).to(dtype)
    clean = layer.final(x)
    rows = [seated.get(seat, RowTerms()) for seat in order]
    expected = layer.modulate(x, clean, layer.compile(rows))
    step = table.modulate(x, clean, torch.tensor(order, dtype=torch.int32))
    assert step.logits.dtype == dtype
    torch.testing.assert_close(step.logits, expected.logits, rtol=1e-3 if dtype == torch.float32 else 2e-2, atol=1e-4)
    torch.testing.assert_close(step.utility.float(), expected.utility.float(), rtol=1e-3, atol=1e-4)
    plain = torch.tensor([row.level == 1.0 and not row.focus for row in rows])
    assert torch.equal(step.logits[plain], clean[plain])


def test_the_tables_hold_the_levels_in_use_and_no_more() -> None:
    table = TermsTable(LAYERS[torch.float32], SEATS)
    assert table.key[:2] == (0, 0)
    for seat, level in enumerate([0.9, 0.7, 0.9, 1.0, 0.5]):
        table.set(seat, RowTerms(level))
    assert table.key[:2] == (3, 0)
    table.clear(0)
    assert table.key[:2] == (3, 0)  # seat 2 still has 0.9
    table.set(2, RowTerms(0.8, {1: 0.5, 2: -0.5}))  # in the row that 0.9 left
    table.clear(4)
    assert table.key[:2] == (2, 2)
    for seat in range(SEATS):
        table.clear(seat)
    assert table.key[:2] == (0, 0)


def test_with_room_made_at_once_the_tables_stay_where_they_are() -> None:
    table = TermsTable(LAYERS[torch.float32], SEATS, levels=SEATS, targets=8)
    moved = table.key[2]
    for seat in range(SEATS):
        table.set(seat, RowTerms(0.9 - seat / 100, {k: 0.5 for k in range(seat)}))
    assert table.key[2] == moved


@pytest.mark.parametrize("terms", [RowTerms(0.01), RowTerms(1.0, {CLASSES: 0.5})])
def test_terms_out_of_range_are_refused_and_leave_the_table_as_it_was(terms: RowTerms) -> None:
    table = TermsTable(LAYERS[torch.float32], SEATS)
    table.set(0, RowTerms(0.9))
    with pytest.raises(ValueError):
        table.set(0, terms)
    assert table.key[:2] == (1, 0)


def test_there_is_no_seat_beyond_the_last() -> None:
    with pytest.raises(IndexError, match=r"0\.\.5"):
        TermsTable(LAYERS[torch.float32], SEATS).set(SEATS, RowTerms())


def test_a_step_compiles_as_one_graph() -> None:
    table = TermsTable(LAYERS[torch.float32], SEATS)
    table.set(0, RowTerms(0.7, {3: 0.9}))
    table.set(1, RowTerms(0.9))
    x, seats = inputs(4), torch.tensor([1, 0, -1, 2], dtype=torch.int32)
    clean = table.layer.final(x)
    step = torch.compile(lambda *args: table.modulate(*args).logits, fullgraph=True, backend="eager")
    torch.testing.assert_close(step(x, clean, seats), table.modulate(x, clean, seats).logits)
