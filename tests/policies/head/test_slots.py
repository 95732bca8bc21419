"""The table of slots' levels: cells that grow and are used again, and noise by each of the ways it is added."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policies.head.slots import WIDE, LevelTable, add_at_once, add_by_level

DEPTH, CLASSES, SLOTS = 8, 5, 6


def matrix(position: int, classes: int = CLASSES) -> Tensor:
    return torch.randn(DEPTH, classes, generator=torch.Generator().manual_seed(position))


def phi(rows: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(rows, DEPTH, generator=torch.Generator().manual_seed(seed)), dim=1)


class Taken:
    """Gives matrices, and remembers which."""

    def __init__(self) -> None:
        self.positions: list[int] = []

    def __call__(self, position: int) -> Tensor:
        self.positions.append(position)
        return matrix(position)


@settings(max_examples=60, deadline=None)
@given(cells=st.lists(st.integers(-1, 4), max_size=24), seed=st.integers(0, 99))
def test_each_way_of_adding_noise_gives_the_same(cells: list[int], seed: int) -> None:
    """One product, a product a level, and row by row; a row alone at its level, some, and most of a step."""
    rows, stack = torch.tensor(cells, dtype=torch.int64), torch.stack([matrix(p) for p in range(5)])
    logits, seen = torch.randn(len(cells), CLASSES), phi(len(cells), seed)
    wanted = torch.stack(
        [z + h @ stack[c] if c >= 0 else z for z, h, c in zip(logits, seen, cells, strict=True)] or [logits[:0].sum(0)]
    )
    for add in (add_at_once, add_by_level):
        got = add(logits, seen, rows, stack)
        torch.testing.assert_close(got, wanted[: len(cells)], rtol=1e-5, atol=1e-5)
        assert torch.equal(got[rows == -1], logits[rows == -1])
        assert got is not logits


def test_squares_of_maps_get_the_noise_that_rows_do() -> None:
    table = LevelTable(SLOTS, DEPTH, CLASSES)
    table.write(0, [7, 0, 9], matrix)
    slots, seen = torch.tensor([0, 1, 2, SLOTS]), phi(4 * 10).reshape(4, 10, DEPTH)
    rows = table.add_noise(torch.zeros(40, CLASSES), seen.flatten(0, 1), slots.repeat_interleave(10))
    noise = table.noise(seen, slots)
    torch.testing.assert_close(noise.transpose(1, 2).flatten(0, 1), rows, rtol=1e-5, atol=1e-5)
    assert not noise[[1, 3]].any()


@pytest.mark.parametrize("classes", [CLASSES, WIDE // DEPTH])
def test_a_compiled_step_adds_what_another_does(classes: int) -> None:
    """Also of a vocabulary, whose levels a CPU multiplies one by one where it is free to look which."""
    table = LevelTable(SLOTS, DEPTH, classes)
    table.write(0, [3, 0, 4, 3], lambda position: matrix(position, classes))
    logits, seen, slots = torch.randn(5, classes), phi(5), torch.tensor([0, 1, 2, 3, SLOTS])
    torch.compiler.reset()
    compiled = torch.compile(table.add_noise, fullgraph=True, backend="eager")
    plain = table.add_noise(logits, seen, slots)
    torch.testing.assert_close(compiled(logits, seen, slots), plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(plain[[1, 4]], logits[[1, 4]])


@pytest.mark.parametrize("add", [add_at_once, add_by_level])
def test_gradients_go_through_the_noise_and_the_logits(add: object) -> None:
    logits, seen = torch.randn(4, CLASSES, requires_grad=True), phi(4).requires_grad_()
    stack = torch.stack([matrix(p) for p in range(3)])
    add(logits, seen, torch.tensor([0, 1, 1, -1]), stack).sum().backward()  # type: ignore[operator]
    assert logits.grad is not None and seen.grad is not None
    assert torch.equal(logits.grad, torch.ones(4, CLASSES))
    wanted = torch.cat([stack[[0, 1, 1]].sum(dim=2), torch.zeros(1, DEPTH)])
    torch.testing.assert_close(seen.grad, wanted)


def test_cells_grow_by_few_steps_and_hold_each_level_once() -> None:
    table, taken, sizes = LevelTable(40, DEPTH, CLASSES), Taken(), []
    for slot in range(20):
        table.write(slot, [slot + 1], taken)
        sizes.append(len(table.stack))
    assert sizes == [1, 2, 3, *[4], *[8] * 4, *[16] * 8, *[32] * 4]
    table.write(20, [5, 5, 20], taken)
    assert taken.positions == list(range(1, 21))
    for slot in range(20):
        assert torch.equal(table.stack[table.cell[slot]], matrix(slot + 1))


def test_the_cells_of_who_left_are_used_again_in_their_place() -> None:
    table, taken = LevelTable(SLOTS, DEPTH, CLASSES), Taken()
    table.write(0, [1, 2, 3], taken)
    place = table.stack.data_ptr()
    table.write(1, [0], taken)
    assert table.position(1) == 0 and int(table.cell[1]) == -1
    table.write(4, [2], taken)
    assert taken.positions == [1, 2, 3], "what nobody had displaced is still there"
    table.write(4, [9], taken)
    assert taken.positions[3:] == [9] and table.stack.data_ptr() == place and len(table.stack) == 3
    for slot, position in ((0, 1), (2, 3), (4, 9)):
        assert torch.equal(table.stack[table.cell[slot]], matrix(position))


def test_a_step_reads_no_more_cells_than_are_in_use() -> None:
    table = LevelTable(8, DEPTH, CLASSES)
    table.write(0, list(range(1, 9)), matrix)
    table.write(1, [0] * 7, matrix)
    assert len(table.stack) == 8 and table.in_use
    table.stack[1:] = torch.nan  # whoever left
    seen = phi(3)
    got = table.add_noise(torch.zeros(3, CLASSES), seen, torch.tensor([0, 1, 0]))
    torch.testing.assert_close(got[[0, 2]], seen[[0, 2]] @ matrix(1), rtol=1e-5, atol=1e-5)
    table.write(0, [0], matrix)
    assert not table.in_use


def test_nobodys_slot_is_clean_whatever_is_written() -> None:
    table = LevelTable(SLOTS, DEPTH, CLASSES)
    table.write(0, [1, 2, 3, 4, 5, 6], matrix)
    logits = torch.randn(4, CLASSES)
    got = table.add_noise(logits, phi(4), torch.tensor([SLOTS, 0, SLOTS, 5]))
    assert torch.equal(got[[0, 2]], logits[[0, 2]]) and not torch.equal(got[1], logits[1])
    assert int(table.cell[SLOTS]) == -1 and table.position(SLOTS) == 0


def test_a_level_that_cannot_be_had_leaves_the_slots_as_they_were() -> None:
    table = LevelTable(SLOTS, DEPTH, CLASSES)
    table.write(0, [1, 2], matrix)

    def none(position: int) -> Tensor:
        raise MemoryError(position)

    for _ in range(2):
        with pytest.raises(MemoryError):
            table.write(0, [3, 4], none)
    assert [table.position(slot) for slot in range(3)] == [1, 2, 0]
    table.write(0, [3, 4], matrix)
    assert torch.equal(table.stack[table.cell[:2]], torch.stack([matrix(3), matrix(4)]))
