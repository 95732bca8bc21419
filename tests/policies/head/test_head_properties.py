"""What holds of the public classes for any sizes, dtypes and settings."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from policies import Calibration, Head, Setting
from policies.head.focus import Target
from policies.head.modulated import Modulated

SECRET = b"the secret of this installation"
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])
SIZES = st.tuples(st.integers(1, 40), st.integers(2, 30))
quick = settings(max_examples=25, deadline=None)


class Products(TorchDispatchMode):
    """Counts matrix products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += name in {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "convolution", "linear"}
        return func(*args, **(kwargs or {}))


def given_inputs(count: int, features: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (3.0 * torch.randn(count, features, generator=torch.Generator().manual_seed(seed))).to(dtype)


class Served:
    """A final layer and its head."""

    def __init__(self, final: nn.Module, head: Head) -> None:
        self.final, self.head = final, head

    def __call__(self, x: Tensor, items: list[Setting]) -> Tensor:
        self.head.write_all(items)
        return self.modulate(x, self.final(x)).logits.to(x.dtype)

    def modulate(self, x: Tensor, logits: Tensor) -> Modulated:
        return self.head(x, logits, self.head.slots_of(len(x)))  # type: ignore[no-any-return]


@cache
def served(
    features: int, classes: int, dtype: torch.dtype = torch.float32, conv: bool = False, block: int = 1
) -> Served:
    torch.manual_seed(features * 100 + classes)
    final: nn.Module = nn.Conv2d(features, classes, 1) if conv else nn.Linear(features, classes)
    final = final.to(dtype).requires_grad_(False)
    x = given_inputs(200, features, dtype, seed=1)
    logits = final(x[:, :, None, None]).reshape(200, classes) if conv else final(x)
    calibration = Calibration.fit(SECRET, "model", x, logits, depth=16, tolerance=0.05, block=block)
    return Served(final, Head(calibration, SECRET, features=features, classes=classes, slots=8))


def lowest(model: Served) -> Setting:
    return Setting(max(model.head.floor, 0.6))


@quick
@given(sizes=SIZES, count=st.integers(1, 9), dtype=DTYPES, focus=st.floats(-0.99, 0.99), conv=st.booleans())
def test_answers_have_the_plain_layers_shape_and_dtype(
    sizes: tuple[int, int], count: int, dtype: torch.dtype, focus: float, conv: bool
) -> None:
    model = served(*sizes, dtype, conv)
    x = given_inputs(count, sizes[0], dtype)
    if conv:
        x = x[:, :, None, None].expand(count, sizes[0], 3, 2)
    plain = model.final(x)
    out = model(x, [[Setting(), lowest(model), Setting(1.0, {0: focus})][i % 3] for i in range(count)])
    assert (out.shape, out.dtype, out.device) == (plain.shape, plain.dtype, plain.device)
    assert torch.isfinite(out).all()
    assert torch.equal(out[::3], plain[::3])  # items at level 1 without focus, bit for bit, in any company


@quick
@given(sizes=SIZES, count=st.integers(1, 64), dtype=DTYPES, conv=st.booleans())
def test_a_batch_at_level_1_is_the_plain_layers_and_costs_no_product(
    sizes: tuple[int, int], count: int, dtype: torch.dtype, conv: bool
) -> None:
    model = served(*sizes, dtype, conv)
    x = given_inputs(count, sizes[0], dtype)
    x = x[:, :, None, None] if conv else x
    with Products() as plainly:
        plain = model.final(x)
    with Products() as modulated:
        out = model(x, [Setting(1.0, {})] * count)
    assert torch.equal(out, plain)
    assert modulated.count == plainly.count == 1


@pytest.mark.parametrize("at", [0, 617, 999])
def test_one_item_of_a_thousand_is_modulated_and_no_other(at: int) -> None:
    model, x = served(24, 10), given_inputs(1000, 24)
    items = [Setting()] * 1000
    items[at] = lowest(model)
    plain, out = model.final(x), model(x, items)
    others = torch.arange(1000) != at
    assert torch.equal(out[others], plain[others])
    alone = model(x[at : at + 1], [items[at]])
    assert not torch.equal(out[at], plain[at])
    torch.testing.assert_close(out[at], alone[0], rtol=1e-5, atol=1e-5)


def one_of_each(model: Served) -> list[Setting]:
    """An item of each kind."""
    low = max(model.head.floor, 0.5)
    return [Setting(), Setting(0.9), Setting(low, {1: 0.7}), Setting(), Setting(low), Setting(1.0, {0: -0.9})]


def maps(count: int, features: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return given_inputs(count * 35, features, dtype).reshape(count, 7, 5, features).movedim(-1, 1)


@pytest.mark.parametrize(("conv", "block"), [(False, 1), (True, 1), (True, 3)], ids=["rows", "maps", "blocks"])
def test_modulation_compiles_as_one_graph(conv: bool, block: int) -> None:
    model = served(12, 6, conv=conv, block=block)
    x = maps(6, 12) if conv else given_inputs(6, 12)
    clean, slots = model.final(x), torch.arange(6)
    model.head.write_all(one_of_each(model))
    eager = model.modulate(x, clean)
    torch.compiler.reset()
    compiled = torch.compile(model.head, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, clean, slots).logits, eager.logits)
    torch.testing.assert_close(compiled(x, clean, slots).utility, eager.utility)


def test_other_settings_need_no_other_graph() -> None:
    """Nothing of who is at which level, or focuses on what, is frozen into a graph."""
    model, x, slots = served(12, 6), given_inputs(6, 12), torch.arange(6)
    clean, head, graphs = model.final(x), model.head, []
    torch.compiler.reset()

    def counted(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(head, fullgraph=True, backend=counted)
    low = max(head.floor, 0.5)
    head.write_all([Setting(low), Setting(0.7), Setting(0.8), Setting(0.9, {2: 0.5}), Setting(), Setting()])
    compiled(x, clean, slots)
    assert len(graphs) == 1
    for items in (
        [Setting(), Setting(0.95, {4: -0.9}), Setting(0.6), Setting(0.7), Setting(0.8), Setting()],
        [Setting(0.7, {1: 0.3})] * 2 + [Setting(0.9), Setting(0.8), Setting(0.99), Setting()],
    ):
        head.write_all(items)
        got = compiled(x, clean, slots)
        torch.testing.assert_close(got.logits, head(x, clean, slots).logits)
        assert torch.equal(got.logits[-1], clean[-1])
    assert len(graphs) == 1


class Waits(TorchDispatchMode):
    """Counts what would make a GPU's host wait: a value read, or a shape that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(at, Tensor) and at.dtype == torch.bool
            for given in args
            if isinstance(given, list)
            for at in given
        )
        if by_mask or name in {
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "unique",
            "_unique2",
            "unique_dim",
            "bincount",
        }:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@quick
@given(sizes=SIZES, dtype=DTYPES, conv=st.booleans(), block=st.sampled_from([1, 3]))
def test_modulation_reads_no_value_back(sizes: tuple[int, int], dtype: torch.dtype, conv: bool, block: int) -> None:
    model = served(*sizes, dtype, conv, block if conv else 1)
    x = maps(6, sizes[0], dtype) if conv else given_inputs(6, sizes[0], dtype)
    clean = model.final(x)
    model.head.write_all(one_of_each(model))
    with Waits() as waits:
        model.modulate(x, clean)
        if conv:  # as elsewhere than on a CPU, which looks at the modulated items alone
            model.head._maps(x, clean, model.head.slots_of(6))
    assert not waits.found


def test_a_step_with_phrases_reads_no_value_back() -> None:
    model, x = served(12, 6), given_inputs(6, 12)
    model.head.write_all(
        [Setting(0.9, {Target(1): 0.9, Target(2, (1,)): 0.9, Target(3, (1, 2)): -0.5}), *[Setting()] * 5]
    )
    clean, tokens = model.final(x), torch.arange(6)
    with Waits() as waits:
        model.modulate(x, clean)
        model.head.chosen(tokens, model.head.slots_of(6))
    assert not waits.found


def test_a_value_that_is_read_back_is_noticed() -> None:
    with Waits() as waits:
        torch.ones(3)[torch.ones(3) > 0].sum().item()
    assert "_local_scalar_dense" in waits.found and len(waits.found) == 2


@quick
@given(count=st.integers(1, 40), levels=st.integers(1, 6), dtype=DTYPES, conv=st.booleans(), focus=st.booleans())
def test_one_field_serves_all_levels_and_focus(
    count: int, levels: int, dtype: torch.dtype, conv: bool, focus: bool
) -> None:
    """One product for the field, one for all levels, one for focus, whatever the number of items."""
    model = served(24, 10, dtype, conv)
    x = given_inputs(count, 24, dtype)
    x = x[:, :, None, None] if conv else x
    clean, floor = model.final(x), model.head.floor
    model.head.write_all(
        [Setting(max(0.99 - 0.05 * (i % levels), floor), {0: 0.5} if focus else {}) for i in range(count)]
    )
    with Products() as products:
        model.modulate(x, clean)
    assert products.count == 2 + focus


def test_products_are_fewer_where_only_focus_is_asked_for() -> None:
    model, x = served(8, 5), given_inputs(4, 8)
    clean = model.final(x)
    model.head.write_all([Setting(focus={1: 0.5})] * 4)
    with Products() as products:
        model.modulate(x, clean)
    assert products.count == 2


@quick
@given(sizes=SIZES, dtype=DTYPES, level=st.sampled_from([1.0, 0.9]))
def test_an_empty_focus_is_no_focus(sizes: tuple[int, int], dtype: torch.dtype, level: float) -> None:
    model, x = served(*sizes, dtype), given_inputs(3, sizes[0], dtype)
    empty = model(x, [Setting(level, {})] * 3)
    assert torch.equal(empty, model(x, [Setting(level)] * 3))
    assert torch.equal(empty, model(x, [Setting(level, {0: 0.0})] * 3))  # and a strength of 0 adds nothing
    assert not model.head.focus.in_use


@pytest.mark.parametrize("conv", [False, True])
def test_an_empty_batch_has_an_empty_answer(conv: bool) -> None:
    model = served(8, 5, conv=conv)
    x = torch.zeros(0, 8, 2, 2) if conv else torch.zeros(0, 8)
    model.head.write_everyone(lowest(model))
    clean = model.final(x)
    assert model.modulate(x, clean).logits.shape == clean.shape
    assert model(x, []).shape == clean.shape


@quick
@given(sizes=SIZES, dtype=DTYPES)
def test_a_masked_class_stays_masked(sizes: tuple[int, int], dtype: torch.dtype) -> None:
    model, x = served(*sizes, dtype), given_inputs(4, sizes[0], dtype)
    clean = model.final(x)
    clean[:, 0] = -torch.inf
    model.head.write_all([lowest(model)] * 4)
    out = model.modulate(x, clean).logits
    assert bool((out[:, 0] == -torch.inf).all()) and bool(torch.isfinite(out[:, 1:]).all())
