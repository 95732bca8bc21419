"""A head takes a refit in place: levels move, the noise of a position stays."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch import nn

from policies import Calibration, Head, Setting, attach

SECRET = b"the secret of this installation"
FEATURES, CLASSES = 32, 10


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(FEATURES, CLASSES).requires_grad_(False)


def inputs(count: int, seed: int = 1) -> torch.Tensor:
    return 4.0 * torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    x = inputs(4000)
    return Calibration.fit(SECRET, "model", x, linear()(x), depth=128)


def head_of(calibration: Calibration) -> Head:
    return Head(calibration, SECRET, features=FEATURES, classes=CLASSES, slots=8)


@pytest.fixture
def layer(calibration: Calibration) -> nn.Linear:
    made = linear()
    attach(made, head_of(calibration))
    return made


def test_a_head_takes_a_refit_in_place_and_keeps_a_positions_noise(layer: nn.Linear) -> None:
    blurred, head = 0.6 * inputs(3000, seed=5), layer.modulation
    old = head.calibration
    refit = Calibration.fit(SECRET, "model", blurred, linear()(blurred), depth=128, field=old)
    clean = linear()(blurred).argmax(dim=1)

    def delivered() -> float:
        with torch.inference_mode():
            return float((layer(blurred).argmax(dim=1) == clean).float().mean())

    head.write_everyone(Setting(0.7))
    before, path, place = delivered(), head.matrix_at(old.position(0.7)), head.levels.stack.data_ptr()
    head.recalibrate(refit)()
    assert abs(before - 0.7) > 0.05 and abs(delivered() - 0.7) < 0.005
    assert torch.equal(head.levels.stack[0], head.ladder.matrix(refit.position(0.7)))
    assert head.levels.stack.data_ptr() == place, "what captured a step reads it in its place"
    assert torch.equal(head.ladder.matrix(old.position(0.7)), path)


def test_a_refit_takes_no_more_cells_than_before(calibration: Calibration) -> None:
    head = head_of(calibration)
    head.write_all([Setting(level) for level in (0.9, 0.8, 0.7, 0.6)])
    assert len(head.levels.stack) == 4
    head.recalibrate(replace(calibration, curve=((0, 1.0), (16_000, 0.9), (18_000, 0.2))))()
    assert len(head.levels.stack) == 4 and head.levels.cell.tolist()[:4] != [0] * 4
    assert [head.levels.position(slot) for slot in range(4)] == [
        head.calibration.position(level) for level in (0.9, 0.8, 0.7, 0.6)
    ]


@pytest.mark.parametrize("change", [{"length_scale": 9.0}, {"depth": 64}, {"block": 2}, {"metric": torch.eye(32)}])
def test_a_calibration_of_another_field_is_not_taken_in_place(layer: nn.Linear, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="noise field"):
        layer.modulation.recalibrate(replace(layer.modulation.calibration, **change))


def test_a_refit_that_raises_the_floor_while_slots_are_written_never_raises() -> None:
    """One thread writes and steps, as a model's does; others prepare and refit, back and forth."""
    low = Calibration("m", 4.0, 16, ((0, 1.0), (16_000, 0.9), (18_000, 0.1)), (1.0,), (1.0,), 300)
    high = replace(low, curve=((0, 1.0), (15_000, 0.9), (16_000, 0.6)))
    head = Head(low, SECRET, features=24, classes=10, slots=4)
    x, clean = torch.randn(4, 24), torch.randn(4, 10)
    adopt: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def refit() -> None:
        for turn in range(40):
            head.keep([0.2, 0.7] if turn % 3 else [])
            adopt.put(head.recalibrate(high if turn % 2 else low))
            head.kept()

    def ask(seed: int) -> None:
        for turn in range(seed, seed + 300):
            for future in head.prepare(Setting((10 + turn % 85) / 100, {turn % 10: 0.5})):
                future.result()

    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(refit), pool.submit(ask, 0), pool.submit(ask, 40)]
        turn = adopted = 0
        while adopted < 40:
            turn += 1
            head.write(turn % 4, Setting((10 + turn % 85) / 100, {turn % 10: 0.5} if turn % 3 == 0 else {}))
            assert torch.isfinite(head(x, clean, head.order).logits).all()
            if not adopt.empty():
                adopt.get()()
                adopted += 1
            assert adopted == 40 or not others[0].done() or others[0].exception() is None
        for other in others:
            other.result()
    head.write_all([Setting(0.2)] * 4)
    assert [head.levels.position(slot) for slot in range(4)] == [head.calibration.position(head.floor)] * 4
