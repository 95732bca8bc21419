"""Matrices of levels: bounded, shared while anybody holds them, safe from several threads and from a captured graph."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from policies import Calibration, ModulatedLayer, RowTerms
from policies.matrices import Matrices

SECRET = b"the secret of this installation"
CALIBRATION = Calibration("m", 10.0, 32, ((0, 1.0), (16_000, 0.9), (18_000, 0.1)), (1.0,), (1.0,), 1000)
LEVELS = [level / 100 for level in range(10, 100)]
BYTES = 4 * 32 * 6


class Built:
    """Builds small matrices, and counts."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.building = 0

    def __call__(self, position: int) -> Tensor:
        self.building += 1
        assert self.building == 1, "two at once would need their memory twice"
        time.sleep(0.0002)
        self.counts[position] += 1
        self.building -= 1
        return torch.full((4, 4), float(position))


def layer_of(limit: int) -> ModulatedLayer:
    torch.manual_seed(0)
    made = ModulatedLayer(nn.Linear(8, 6), CALIBRATION, SECRET).requires_grad_(False)
    made._matrices = Matrices(made._build, limit)
    return made


def test_the_last_used_are_kept_within_the_limit() -> None:
    built = Built()
    matrices = Matrices(built, limit=3 * 64 + 1)
    for position in (1, 2, 3, 1, 4):
        assert float(matrices.at(position)[0, 0]) == position
    assert matrices.kept() == [3, 1, 4] and set(built.counts.values()) == {1}
    matrices.at(2)
    assert built.counts[2] == 2 and matrices.kept() == [1, 4, 2]
    one = Matrices(built, limit=0)
    one.at(7)
    assert one.kept() == [7]


def test_a_matrix_that_somebody_holds_is_shared_and_one_that_nobody_holds_is_gone() -> None:
    built = Built()
    matrices = Matrices(built, limit=64)
    held = matrices.at(1)
    matrices.at(2)
    assert matrices.at(1) is held and built.counts[1] == 1
    matrices.at(3)
    del held
    gc.collect()
    matrices.at(1)
    assert built.counts[1] == 2
    matrices.at(5, keep=False)
    assert matrices.kept() == [1], "judging displaces nothing"


def test_many_threads_get_the_right_matrices() -> None:
    matrices, wrong = Matrices(Built(), limit=2 * 64), []

    def ask(seed: int) -> None:
        for position in torch.randint(1, 6, (200,), generator=torch.Generator().manual_seed(seed)).tolist():
            try:
                if float(matrices.at(position).sum()) != 16 * position:
                    wrong.append(position)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(matrices.kept()) == 2


def test_a_layer_that_has_answered_at_every_level_keeps_few_matrices() -> None:
    layer = layer_of(5 * BYTES)
    for level in LEVELS:
        layer.prepare(RowTerms(level))
    assert len(layer._matrices.kept()) == 5 and layer.levels_kept() == LEVELS[-5:]


def test_a_batch_at_more_levels_than_are_kept_is_answered_as_by_an_unbounded_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bounded, free = layer_of(2 * BYTES), layer_of(2**20)
    x, rows = torch.randn(len(LEVELS), 8), [RowTerms(level) for level in LEVELS]
    terms = bounded.compile(rows)
    for level in (0.3, 0.4, 0.5):
        bounded.prepare(RowTerms(level))
    # Neither a batch that is under way nor a graph that is replayed can build, or lose, a matrix.
    monkeypatch.setattr(bounded.ladder, "matrix", lambda _: pytest.fail("built within the forward"))
    got = bounded.modulate(x, bounded.final(x), terms).logits
    assert torch.equal(got, free.modulate(x, free.final(x), free.compile(rows)).logits)


def test_a_refit_builds_what_is_kept_and_the_rest_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(3 * BYTES)
    for level in LEVELS:
        layer.prepare(RowTerms(level))
    build, built = layer.ladder.matrix, []

    def counted(position: int) -> Tensor:
        built.append(position)
        return build(position)

    monkeypatch.setattr(layer.ladder, "matrix", counted)
    refit = replace(CALIBRATION, curve=((0, 1.0), (15_000, 0.9), (17_000, 0.1)))
    layer.recalibrate(refit)()
    assert built == [refit.position(level) for level in LEVELS[-3:]]
    assert torch.equal(layer.matrix(0.5), build(refit.position(0.5)))
    assert built[3:] == [refit.position(0.5)]
