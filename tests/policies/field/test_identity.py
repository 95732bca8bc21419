"""The digest that names a noise field: of a final layer's values, whatever they are kept in."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from policies.field import identity
from policies.field.identity import field_digest


def linear(seed: int = 0, features: int = 37, classes: int = 11, bias: bool = True) -> nn.Linear:
    torch.manual_seed(seed)
    made = nn.Linear(features, classes, bias=bias).requires_grad_(False)
    made.weight[0, :4] = torch.tensor([1e-9, -1e-9, 0.0, -0.0])  # below float16's smallest, and both zeros
    return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_it_is_one_whatever_the_float_type(dtype: torch.dtype) -> None:
    rounded = copy.deepcopy(linear()).to(dtype)
    assert rounded.weight[0, 1] <= 0.0 and field_digest(rounded) == field_digest(linear())


def test_a_convolution_of_one_pixel_is_the_layer_that_it_is() -> None:
    plain = linear()
    conv = nn.Conv2d(37, 11, 1).requires_grad_(False)
    conv.weight.copy_(plain.weight[..., None, None])
    conv.bias.copy_(plain.bias)  # type: ignore[union-attr]
    assert field_digest(conv) == field_digest(plain)


def test_it_does_not_depend_on_how_weights_lie_in_memory_or_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = linear()
    turned = copy.deepcopy(plain)
    turned.weight = nn.Parameter(plain.weight.T.contiguous().T, requires_grad=False)
    assert not turned.weight.is_contiguous() and field_digest(turned) == field_digest(plain)
    before = field_digest(plain)
    monkeypatch.setattr(identity, "_AT_ONCE", 64)
    assert field_digest(plain) == before


def test_another_layer_has_another() -> None:
    plain = linear()
    others = [linear(1), linear(features=11, classes=37), linear(bias=False)]
    trained = copy.deepcopy(plain)
    trained.weight[3, 5] *= -1.0
    biased = copy.deepcopy(plain)
    biased.bias *= -1.0
    assert len({field_digest(layer) for layer in (plain, *others, trained, biased)}) == 6
