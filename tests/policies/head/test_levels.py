"""Matrices of levels: built in a thread of their own, kept within a bound, shared while anybody holds them."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from policies import Calibration, Head, NoiseLadder, Setting
from policies.head.levels import Levels

SECRET = b"the secret of this installation"
FEATURES, CLASSES, DEPTH = 8, 6, 32
CALIBRATION = Calibration("m", 10.0, DEPTH, ((0, 1.0), (16_000, 0.9), (18_000, 0.1)), (1.0,), (1.0,), 1000)
HUNDRED = range(1, 101)
BYTES = 4 * DEPTH * CLASSES


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


def head_of(limit: int) -> Head:
    made = Head(CALIBRATION, SECRET, features=FEATURES, classes=CLASSES, slots=4)
    made._matrices = Levels(made.ladder, torch.device("cpu"), limit)
    return made


def built(head: Head, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions that are built from now on."""
    build, found = head.ladder.matrix, []

    def counted(position: int) -> Tensor:
        found.append(position)
        return build(position)

    monkeypatch.setattr(head.ladder, "matrix", counted)
    return found


LEVELS = [level / 100 for level in range(10, 100)]


def test_a_head_that_has_answered_at_every_level_keeps_few_matrices() -> None:
    head = head_of(5 * BYTES)
    for level in LEVELS:
        for future in head.prepare(Setting(level)):
            future.result()
    assert head.kept() == LEVELS[-5:]


def test_a_head_keeps_what_is_sold_at_its_place_of_each_refit(monkeypatch: pytest.MonkeyPatch) -> None:
    head = head_of(2 * BYTES)
    head.keep([0.9, 0.5])
    for level in LEVELS:
        head.prepare(Setting(level))[0].result()
    assert {0.9, 0.5} <= set(head.kept()) and len(head.kept()) == 4
    refit = replace(CALIBRATION, curve=((0, 1.0), (15_000, 0.9), (17_000, 0.1)))
    head.recalibrate(refit)()
    found = built(head, monkeypatch)
    for level in LEVELS:
        head.prepare(Setting(level))[0].result()
        assert {0.9, 0.5} <= set(head.kept())
    assert refit.position(0.9) not in found and refit.position(0.5) not in found


def test_a_batch_at_more_levels_than_are_kept_is_answered_as_by_an_unbounded_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bounded, free = head_of(2 * BYTES), head_of(2**20)
    x, clean = torch.randn(len(LEVELS), FEATURES), torch.randn(len(LEVELS), CLASSES)
    for head in (bounded, free):
        head.write_all([Setting(level) for level in LEVELS])
    for level in (0.3, 0.4, 0.5):
        bounded.prepare(Setting(level))[0].result()
    # Neither a batch that is under way nor a graph that is replayed can build, or lose, a matrix.
    monkeypatch.setattr(bounded.ladder, "matrix", lambda _: pytest.fail("built within the forward"))
    got, wanted = (head(x, clean, head.slots_of(len(x))).logits for head in (bounded, free))
    assert torch.equal(got, wanted)


def test_who_holds_what_it_prepared_is_seated_without_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence that waits for its seat, whatever others ask for meanwhile."""
    head = head_of(2 * BYTES)
    held = head.prepare(Setting(0.55, {1: 0.5}))
    for future in held:
        future.result()
    for level in LEVELS:
        if level != 0.55:
            head.prepare(Setting(level))[0].result()
    found = built(head, monkeypatch)
    head.write(2, Setting(0.55, {1: 0.5}))
    assert not found and len(held) == 2


def test_a_refit_builds_what_is_kept_and_in_use_and_the_rest_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = head_of(3 * BYTES)
    head.write(0, Setting(0.2))
    for level in LEVELS:
        head.prepare(Setting(level))[0].result()
    found = built(head, monkeypatch)
    refit = replace(CALIBRATION, curve=((0, 1.0), (15_000, 0.9), (17_000, 0.1)))
    adopt = head.recalibrate(refit)
    assert set(found) == {refit.position(level) for level in (0.2, *LEVELS[-3:])}
    count = len(found)
    adopt()
    assert len(found) == count and head.levels.position(0) == refit.position(0.2)
    assert head.matrix_at(refit.position(0.5)).shape == (DEPTH, CLASSES)
    assert found[count:] == [refit.position(0.5)]


def test_a_head_survives_torch_save_while_its_builder_runs() -> None:
    head = head_of(3 * BYTES)
    head.write_all([Setting(0.5), Setting(0.7, {2: 0.5})])
    head.prepare(Setting(0.3))
    file = io.BytesIO()
    torch.save(head, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    x, clean = torch.randn(2, FEATURES), torch.randn(2, CLASSES)
    one, other = (h(x, clean, h.slots_of(2)).logits for h in (head, again))
    assert torch.equal(one, other)
    again.write(3, Setting(0.3))
    assert again.levels.position(3) == head.position(Setting(0.3))


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
