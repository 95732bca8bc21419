"""The noise over keys and its sameness in use, judged by what the public classes answer, whatever field is inside."""

import hashlib
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from deployments.config import REPOSITORY
from policies import Calibration, Head, NoiseLadder, Setting, attach
from policies.field.variance import POSITIONS, variance

SECRET = b"the secret of this installation"
FEATURES, CLASSES, KEYS = 12, 5, 1500
LOW, HIGH = POSITIONS // 2, POSITIONS // 2 + 1500
LEVELS = (1.0, 0.9, 0.7, 0.5)
FIELD = {"features": FEATURES, "classes": CLASSES, "length_scale": 4.0, "depth": 64}


def inputs(count: int, seed: int = 0) -> Tensor:
    return 2.0 * torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    """[keys, fields, classes] standardised: noise of an input at LOW and its increment to HIGH, and the focus field."""
    x = inputs(1)
    scales = [math.sqrt(variance(LOW)), math.sqrt(variance(HIGH) - variance(LOW)), 1.0]
    rows = []
    for key in range(KEYS):
        ladder = NoiseLadder(b"statistics %16d" % key, "model", **FIELD)  # type: ignore[arg-type]
        low, high = (ladder.noise(x, torch.tensor([position]))[0] for position in (LOW, HIGH))
        rows.append(torch.stack([low, high - low, (ladder.phi(x) @ ladder.focus_matrix())[0]]))
    return torch.stack(rows) / torch.tensor(scales)[None, :, None]


@pytest.mark.parametrize("field", [0, 1, 2], ids=["noise", "increment", "focus"])
def test_it_is_standard_normal_over_keys(drawn: Tensor, field: int) -> None:
    z = drawn[:, field].flatten().double().sort().values
    count = len(z)
    assert abs(float(z.mean())) < 4.0 / math.sqrt(count)
    assert float(z.var()) == pytest.approx(1.0, abs=4.0 * math.sqrt(2.0 / count))
    assert float((z**4).mean()) == pytest.approx(3.0, abs=4.0 * math.sqrt(96.0 / count))
    # Kolmogorov and Smirnov's distance at the 0.1 % point, and the tails, which it hardly sees.
    ranks = torch.arange(1, count + 1, dtype=torch.float64) / count
    assert float((torch.special.ndtr(z) - ranks).abs().max()) < 1.95 / math.sqrt(count)
    for tail in (2.0, 3.0):
        expected = 2.0 * count * float(torch.special.ndtr(torch.tensor(-tail, dtype=torch.float64)))
        assert abs(float((z.abs() > tail).sum()) - expected) < 4.0 * math.sqrt(expected)


def test_classes_increments_and_focus_are_independent_of_each_other(drawn: Tensor) -> None:
    """No correlation, of values or of magnitudes, between any two of the 15 numbers that a key draws."""
    flat = drawn.flatten(1).double()
    for values in (flat, flat.abs()):
        off = torch.corrcoef(values.T) - torch.eye(flat.shape[1])
        assert float(off.abs().max()) < 4.5 / math.sqrt(KEYS)


def test_installations_and_models_are_independent() -> None:
    x = inputs(400)
    at = torch.full((400,), LOW)
    names = [(SECRET, "model"), (SECRET[:-1] + b"m", "model"), (SECRET, "model2")]
    # Far apart in D = 4,096 random features, so that 400 inputs hold nearly as many independent values.
    wide = FIELD | {"length_scale": 0.1, "depth": 4096}
    flat = torch.stack([NoiseLadder(*name, **wide).noise(x, at).flatten() for name in names])  # type: ignore[arg-type]
    assert float((torch.corrcoef(flat) - torch.eye(3)).abs().max()) < 4.5 / math.sqrt(flat.shape[1])


def served(secret: bytes = SECRET) -> torch.nn.Linear:
    """A layer with a head and a calibration of its own; the same in every process."""
    generator = torch.Generator().manual_seed(5)
    final = torch.nn.Linear(FEATURES, CLASSES).requires_grad_(False)
    final.weight.copy_(torch.randn(CLASSES, FEATURES, generator=generator))
    final.bias.copy_(torch.randn(CLASSES, generator=generator))
    x = inputs(500, seed=8)
    calibration = Calibration.fit(secret, "model", x, final(x), depth=64)
    attach(final, Head(calibration, secret, features=FEATURES, classes=CLASSES, slots=64))
    return final


def head_of(layer: torch.nn.Module) -> Head:
    head = layer.get_submodule("modulation")
    assert isinstance(head, Head)
    return head


def answer(layer: torch.nn.Linear, x: Tensor, levels: list[float]) -> Tensor:
    head_of(layer).write_all([Setting(level, {1: 0.8} if i % 2 else {}) for i, level in levels_of(levels)])
    with torch.inference_mode():
        return layer(x)  # type: ignore[no-any-return]


def levels_of(levels: list[float]) -> list[tuple[int, float]]:
    """Each level with the number that decides, with it and not with its place, whether the item has a focus."""
    return [(round(100 * level) // 10, level) for level in levels]


def digest() -> str:
    """What a process answers, and where its levels lie."""
    layer = served()
    out = answer(layer, inputs(64), [LEVELS[i % 4] for i in range(64)])
    positions = [head_of(layer).calibration.position(level) for level in LEVELS]
    return hashlib.sha256(out.numpy().tobytes() + repr(positions).encode()).hexdigest()


def test_a_row_answers_the_same_in_any_batch_order_and_company() -> None:
    layer, x = served(), inputs(64)
    levels = [LEVELS[i % 4] for i in range(64)]
    whole = answer(layer, x, levels)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    shuffled = answer(layer, x[order], [levels[i] for i in order.tolist()])
    torch.testing.assert_close(shuffled, whole[order], rtol=1e-5, atol=1e-5)
    for size in (1, 7, 32):
        parts = [answer(layer, x[i : i + size], levels[i : i + size]) for i in range(0, 64, size)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)
    for level in LEVELS:
        mine = torch.tensor([own == level for own in levels])
        torch.testing.assert_close(answer(layer, x[mine], [level] * 16), whole[mine], rtol=1e-5, atol=1e-5)


def test_a_restarted_process_answers_the_same_bit_for_bit() -> None:
    code = "from tests import conftest; from tests.policies.field.test_noise_statistics import digest; print(digest())"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest()


def test_other_levels_and_a_refit_leave_the_noise_of_a_position_alone() -> None:
    layer, x = served(), inputs(500, seed=9)
    head = head_of(layer)
    before = head.ladder.noise(x, torch.full((500,), LOW))
    for level in LEVELS:
        for future in head.prepare(Setting(level)):
            future.result()
    first = head.calibration
    clean = torch.nn.functional.linear(x, layer.weight, layer.bias)
    refit = Calibration.fit(SECRET, "model", x, 3.0 * clean, depth=first.depth, field=first)
    assert refit.position(0.7) != first.position(0.7)
    head.recalibrate(refit)()
    assert torch.equal(head.ladder.noise(x, torch.full((500,), LOW)), before)
    again = refit.ladder(SECRET, features=FEATURES, classes=CLASSES)
    assert torch.equal(again.noise(x, torch.full((500,), LOW)), before)
    torch.testing.assert_close(head.phi(x) @ head.matrix_at(LOW), before)
