"""Matrices of levels: built in a thread of their own, kept within a bound, shared while anybody holds them."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import time
from collections import Counter
from concurrent.futures import Future

import pytest
import torch
from torch import Tensor

from policies import NoiseLadder
from policies.head.levels import Levels
from tests.policies.head.levels_support import BYTES, CLASSES, DEPTH, FEATURES, HUNDRED, SECRET


class Counted(NoiseLadder):
    """A ladder that counts what is built, where, and holds builds back while `gate` is closed."""

    def __init__(self) -> None:
        super().__init__(SECRET, "m", features=FEATURES, classes=CLASSES, length_scale=10.0, depth=DEPTH)
        self.counts: Counter[int] = Counter()
        self.threads: set[str] = set()
        self.building = 0
        self.gate = threading.Event()
        self.gate.set()

    def matrix(self, position: int) -> Tensor:
        self.building += 1
        assert self.building == 1, "two at once would need their memory twice"
        assert self.gate.wait(30)
        self.counts[position] += 1
        self.threads.add(threading.current_thread().name)
        time.sleep(0.0002)
        self.building -= 1
        return super().matrix(position)


def levels_of(limit: int) -> tuple[Levels, Counted]:
    ladder = Counted()
    return Levels(ladder, torch.device("cpu"), limit), ladder


def test_the_last_used_are_kept_within_the_limit() -> None:
    levels, ladder = levels_of(3 * BYTES + 1)
    for position in (1, 2, 3, 1, 4):
        assert torch.equal(levels.at(position).result(), NoiseLadder.matrix(ladder, position))
    assert levels.kept() == [3, 1, 4] and set(ladder.counts.values()) == {1}
    levels.at(2).result()
    assert ladder.counts[2] == 2 and levels.kept() == [1, 4, 2]
    one, _ = levels_of(0)
    one.at(7).result()
    assert one.kept() == [7]


@pytest.mark.parametrize("limit", [12, 99, 150])
def test_as_many_are_kept_as_the_limit_allows(limit: int) -> None:
    levels, _ = levels_of(limit * BYTES)
    for position in HUNDRED:
        levels.at(position).result()
        assert len(levels.kept()) == min(position, limit)


def test_they_are_built_in_a_thread_of_their_own_and_nobody_waits_for_anothers() -> None:
    levels, ladder = levels_of(10 * BYTES)
    at_hand = levels.at(1).result()
    ladder.gate.clear()
    slow = [levels.at(2), levels.at(3), levels.at(2)]
    assert levels.at(1).result(timeout=1) is at_hand and levels.kept() == [1]
    assert not any(future.done() for future in slow)
    ladder.gate.set()
    assert slow[0].result() is slow[2].result() is not slow[1].result()
    assert ladder.threads == {"levels_0"} and max(ladder.counts.values()) == 1


def test_what_is_sold_is_never_displaced_while_another_cycles_through_all() -> None:
    levels, ladder = levels_of(3 * BYTES)
    sold = [5, 50, 95]
    levels.keep(sold)
    for position in sold:
        levels.at(position).result()
    for _ in range(2):
        for position in HUNDRED:
            levels.at(position).result()
            assert set(sold) <= set(levels.kept()) and len(levels.kept()) <= len(sold) + 3
    assert all(ladder.counts[position] == 1 for position in sold)
    assert ladder.counts[1] == 2
    levels.keep([])
    levels.at(1).result()
    assert len(levels.kept()) == 3, "what is sold no more is as any other"


def test_a_matrix_that_somebody_holds_is_shared_and_one_that_nobody_holds_is_gone() -> None:
    levels, ladder = levels_of(BYTES)
    held: Future[Tensor] | None = levels.at(1)
    assert held is not None
    for position in HUNDRED:
        assert levels.at(position).result() is not None
    assert levels.at(1).result() is held.result() and ladder.counts[1] == 1
    levels.at(3).result()
    held = None
    gc.collect()
    levels.at(1).result()
    assert ladder.counts[1] == 2


def test_judging_displaces_nothing_unless_the_matrix_is_used_as_well() -> None:
    levels, ladder = levels_of(BYTES)
    levels.at(1).result()
    levels.at(5, keep=False).result()
    assert levels.kept() == [1]
    ladder.gate.clear()
    both = levels.at(6, keep=False), levels.at(6)
    ladder.gate.set()
    assert both[0].result() is both[1].result() and levels.kept() == [6] and ladder.counts[6] == 1


def test_a_build_that_fails_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    levels, ladder = levels_of(10 * BYTES)

    def full(position: int) -> Tensor:
        raise MemoryError(f"no room for {position}")

    with monkeypatch.context() as patched:
        patched.setattr(ladder, "matrix", full)
        with pytest.raises(MemoryError, match="room for 3"):
            levels.at(3).result()
    assert levels.at(3).result().shape == (DEPTH, CLASSES) and levels.kept() == [3]


def test_many_threads_get_the_right_matrices() -> None:
    levels, ladder = levels_of(2 * BYTES)
    wanted = {position: NoiseLadder.matrix(ladder, position) for position in range(1, 6)}
    wrong: list[object] = []

    def ask(seed: int) -> None:
        for position in torch.randint(1, 6, (200,), generator=torch.Generator().manual_seed(seed)).tolist():
            try:
                if not torch.equal(levels.at(position, keep=position % 2 == 0).result(), wanted[position]):
                    wrong.append(position)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(levels.kept()) == 2


def test_a_copy_builds_its_own_and_its_builder_goes_with_it() -> None:
    levels = Levels(
        NoiseLadder(SECRET, "m", features=FEATURES, classes=CLASSES, length_scale=10.0, depth=DEPTH),
        torch.device("cpu"),
        2 * BYTES,
    )
    levels.keep([9])
    first, focus = levels.at(9).result(), levels.focus().result()
    for again in (copy.deepcopy(levels), pickle.loads(pickle.dumps(levels))):
        assert again.kept() == []
        assert torch.equal(again.at(9).result(), first) and torch.equal(again.focus().result(), focus)
        for position in HUNDRED:
            again.at(position).result()
        assert 9 in again.kept() and len(again.kept()) == 3, "what is sold and the limit come along"
    assert levels.kept() == [9]


def test_another_device_gets_its_own() -> None:
    levels, ladder = levels_of(10 * BYTES)
    levels.at(1).result()
    levels.to(torch.device("cpu"))
    assert levels.kept() == [1]
    levels.to(torch.device("meta"))
    assert levels.kept() == [] and levels.at(1).result().device.type == "meta"
    assert levels.focus().result().device.type == "meta" and ladder.counts[1] == 2


def test_who_stops_waiting_for_a_level_takes_it_from_nobody_else() -> None:
    """As `asyncio.wrap_future` does where a client leaves: it cancels what it waits for."""
    ladder = Counted()
    levels = Levels(ladder, torch.device("cpu"))
    ladder.gate.clear()
    levels.at(9_001)
    left, stayed = levels.at(9_002), levels.at(9_002)
    assert not left.cancel()
    ladder.gate.set()
    assert torch.equal(stayed.result(), levels.at(9_002).result()) and ladder.counts[9_002] == 1


def test_a_request_does_not_wait_for_all_levels_that_are_sold() -> None:
    ladder = Counted()
    levels = Levels(ladder, torch.device("cpu"))
    ladder.gate.clear()
    levels.keep(range(1_000, 1_020))
    asked = levels.at(5_000)
    ladder.gate.set()
    asked.result()
    assert sum(ladder.counts[position] for position in range(1_000, 1_020)) <= 2
    for position in range(1_000, 1_020):
        levels.at(position).result()
    assert set(range(1_000, 1_020)) <= set(levels.kept()) and set(ladder.counts.values()) == {1}
