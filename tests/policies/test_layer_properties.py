"""What holds of the public classes for any sizes, dtypes and terms."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from policies import Calibration, ModulatedLayer, NoiseLadder, RowTerms, agreement, focus_std, sigma_for
from policies.ladder import POSITIONS

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


@cache
def wrapped(features: int, classes: int, dtype: torch.dtype = torch.float32, conv: bool = False) -> ModulatedLayer:
    torch.manual_seed(features * 100 + classes)
    final: nn.Module = nn.Conv2d(features, classes, 1) if conv else nn.Linear(features, classes)
    final = final.to(dtype).requires_grad_(False)
    x = given_inputs(200, features, dtype, seed=1)
    logits = final(x[:, :, None, None]).reshape(200, classes) if conv else final(x)
    calibration = Calibration.fit(SECRET, "model", x, logits, depth=16, tolerance=0.05)
    return ModulatedLayer(final, calibration, SECRET)


def lowest(layer: ModulatedLayer) -> RowTerms:
    return RowTerms(max(layer.floor, 0.6))


@quick
@given(sizes=SIZES, count=st.integers(1, 9), dtype=DTYPES, focus=st.floats(-0.99, 0.99), conv=st.booleans())
def test_answers_have_the_plain_layers_shape_and_dtype(
    sizes: tuple[int, int], count: int, dtype: torch.dtype, focus: float, conv: bool
) -> None:
    layer = wrapped(*sizes, dtype, conv)
    x = given_inputs(count, sizes[0], dtype)
    if conv:
        x = x[:, :, None, None].expand(count, sizes[0], 3, 2)
    terms = [[RowTerms(), lowest(layer), RowTerms(1.0, {0: focus})][i % 3] for i in range(count)]
    plain = layer.final(x)
    with layer.rows(terms):
        out = layer(x)
    assert (out.shape, out.dtype, out.device) == (plain.shape, plain.dtype, plain.device)
    assert torch.isfinite(out).all()
    assert torch.equal(out[::3], plain[::3])  # rows at level 1 without focus, bit for bit, in any company


@quick
@given(sizes=SIZES, count=st.integers(1, 64), dtype=DTYPES, conv=st.booleans())
def test_a_batch_at_level_1_is_the_plain_layers_and_costs_no_product(
    sizes: tuple[int, int], count: int, dtype: torch.dtype, conv: bool
) -> None:
    layer = wrapped(*sizes, dtype, conv)
    x = given_inputs(count, sizes[0], dtype)
    x = x[:, :, None, None] if conv else x
    with Products() as plainly:
        plain = layer.final(x)
    with layer.rows([RowTerms(1.0, {})] * count), Products() as modulated:
        out = layer(x)
    assert torch.equal(out, plain)
    assert modulated.count == plainly.count == 1


def test_products_are_counted_where_rows_are_modulated() -> None:
    layer, x = wrapped(8, 5), given_inputs(4, 8)
    with layer.rows([lowest(layer)] * 4), Products() as modulated:
        layer(x)
    assert modulated.count > 1


@pytest.mark.parametrize("at", [0, 617, 999])
def test_one_row_of_a_thousand_is_modulated_and_no_other(at: int) -> None:
    layer, x = wrapped(24, 10), given_inputs(1000, 24)
    terms = [RowTerms()] * 1000
    terms[at] = lowest(layer)
    plain = layer.final(x)
    with layer.rows(terms):
        out = layer(x)
    others = torch.arange(1000) != at
    assert torch.equal(out[others], plain[others])
    with layer.rows([terms[at]]):
        alone = layer(x[at : at + 1])
    assert not torch.equal(out[at], plain[at])
    torch.testing.assert_close(out[at], alone[0], rtol=1e-5, atol=1e-5)


@quick
@given(sizes=SIZES, dtype=DTYPES, position=st.integers(0, POSITIONS), count=st.integers(0, 5))
def test_noise_is_float32_and_finite_whatever_the_features(
    sizes: tuple[int, int], dtype: torch.dtype, position: int, count: int
) -> None:
    ladder = NoiseLadder(SECRET, "model", features=sizes[0], classes=sizes[1], length_scale=2.0, depth=8)
    x = given_inputs(count, sizes[0], dtype)
    noise, phi = ladder.noise(x, torch.full((count,), position)), ladder.phi(x)
    assert noise.shape == (count, sizes[1]) and noise.dtype == phi.dtype == torch.float32
    assert torch.isfinite(noise).all() and bool(noise.eq(0.0).all()) is (position == 0 or count == 0)
    torch.testing.assert_close(phi.norm(dim=1), torch.ones(count))


@quick
@given(sizes=SIZES, dtype=DTYPES, sigma=st.floats(0.0, 1e6), shift=st.floats(-50.0, 50.0))
def test_agreement_lies_between_chance_and_certainty_and_ignores_a_shift(
    sizes: tuple[int, int], dtype: torch.dtype, sigma: float, shift: float
) -> None:
    logits = given_inputs(3, sizes[1], dtype)
    survives = agreement(logits, sigma)
    assert survives.shape == (3,) and survives.dtype == torch.float64
    assert ((survives >= 1.0 / sizes[1] - 1e-9) & (survives <= 1.0)).all()
    assert (survives >= agreement(logits, sigma * 1.5 + 0.01) - 1e-9).all()
    torch.testing.assert_close(agreement(logits.double() + shift, sigma), survives)


@quick
@given(classes=st.integers(2, 40), level=st.floats(0.55, 1.0))
def test_sigma_for_is_the_inverse_of_agreement(classes: int, level: float) -> None:
    logits = given_inputs(60, classes)
    assert float(agreement(logits, sigma_for(logits, level)).mean()) == pytest.approx(level, abs=1e-3)


@quick
@given(strength=st.floats(-0.99, 0.99), gap=st.floats(0.0, 1e6))
def test_focus_std_is_even_in_the_strength_and_grows_with_it(strength: float, gap: float) -> None:
    delta = focus_std(strength, gap)
    assert 0.0 <= delta == focus_std(-strength, gap) <= focus_std(0.99, gap)


def batch_terms(layer: ModulatedLayer) -> list[RowTerms]:
    """A row of each kind."""
    low = max(layer.floor, 0.5)
    return [RowTerms(), RowTerms(0.9), RowTerms(low, {1: 0.7}), RowTerms(), RowTerms(low), RowTerms(1.0, {0: -0.9})]


@pytest.mark.parametrize("conv", [False, True], ids=["rows", "maps"])
def test_modulation_compiles_as_one_graph(conv: bool) -> None:
    layer = wrapped(12, 6, conv=conv)
    x = given_inputs(6 * 35, 12).reshape(6, 7, 5, 12).movedim(-1, 1) if conv else given_inputs(6, 12)
    clean, terms = layer.final(x), layer.compile(batch_terms(layer))
    modulate = layer.modulate_map if conv else layer.modulate
    compiled = torch.compile(lambda x, clean: modulate(x, clean, terms).logits, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, clean), modulate(x, clean, terms).logits)


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
@given(sizes=SIZES, dtype=DTYPES, conv=st.booleans())
def test_modulation_reads_no_value_back(sizes: tuple[int, int], dtype: torch.dtype, conv: bool) -> None:
    layer = wrapped(*sizes, dtype, conv)
    x = given_inputs(6, sizes[0], dtype)
    x = x[:, :, None, None].expand(-1, -1, 4, 3) if conv else x
    clean, terms = layer.final(x), layer.compile(batch_terms(layer))
    with Waits() as waits:
        (layer.modulate_map if conv else layer.modulate)(x, clean, terms)
    assert not waits.found


def test_a_value_that_is_read_back_is_noticed() -> None:
    with Waits() as waits:
        torch.ones(3)[torch.ones(3) > 0].sum().item()
    assert "_local_scalar_dense" in waits.found and len(waits.found) == 2


@quick
@given(sizes=SIZES, count=st.integers(2, 9), dtype=DTYPES, conv=st.booleans())
def test_one_field_serves_all_levels_and_focus(
    sizes: tuple[int, int], count: int, dtype: torch.dtype, conv: bool
) -> None:
    """One product for the field, one a level, one for focus, whatever the number of items."""
    layer = wrapped(*sizes, dtype, conv)
    x = given_inputs(count, sizes[0], dtype)
    x = x[:, :, None, None] if conv else x
    clean, low = layer.final(x), max(layer.floor, 0.5)
    rows = [RowTerms(0.99 if index % 2 else max(0.6, low), {0: 0.5}) for index in range(count)]
    levels = len({row.level for row in rows})
    terms = layer.compile(rows)
    with Products() as products:
        (layer.modulate_map if conv else layer.modulate)(x, clean, terms)
    assert products.count == 1 + levels + 1


@quick
@given(sizes=SIZES, dtype=DTYPES, level=st.sampled_from([1.0, 0.9]))
def test_an_empty_focus_is_no_focus(sizes: tuple[int, int], dtype: torch.dtype, level: float) -> None:
    layer, x = wrapped(*sizes, dtype), given_inputs(3, sizes[0], dtype)
    with layer.rows([RowTerms(level, {})] * 3):
        empty = layer(x)
    with layer.rows([RowTerms(level)] * 3):
        assert torch.equal(empty, layer(x))
    with layer.rows([RowTerms(level, {0: 0.0})] * 3):  # and a strength of 0 adds nothing
        assert torch.equal(empty, layer(x))


def test_an_empty_batch_has_an_empty_answer() -> None:
    layer = wrapped(8, 5)
    with layer.rows([]):
        assert layer(torch.zeros(0, 8)).shape == (0, 5)


@quick
@given(sizes=SIZES, dtype=DTYPES)
def test_a_masked_class_stays_masked(sizes: tuple[int, int], dtype: torch.dtype) -> None:
    layer, x = wrapped(*sizes, dtype), given_inputs(4, sizes[0], dtype)
    clean = layer.final(x)
    clean[:, 0] = -torch.inf
    out = layer.modulate(x, clean, layer.compile([lowest(layer)] * 4)).logits
    assert bool((out[:, 0] == -torch.inf).all()) and bool(torch.isfinite(out[:, 1:]).all())
