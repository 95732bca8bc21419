"""A head behind a model's own layer: the model stays what it was, and whatever is done to it takes the head along."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies import Calibration, Head, Setting, attach, detach

SECRET = b"the secret of this installation"
FEATURES, CLASSES = 16, 6
CALIBRATION = Calibration("m", 4.0, 32, ((0, 1.0), (16_000, 0.9), (18_000, 0.3)), (1.0,), (1.0,), 1000)


class Tied(nn.Module):
    """A little language model: its final layer has the embeddings' own weights, and its logits are scaled after it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES, FEATURES)
        self.lm_head = nn.Linear(FEATURES, CLASSES, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm_head(3.0 * self.embed(ids)) / 8.0  # type: ignore[no-any-return]


def head(**options: int) -> Head:
    return Head(CALIBRATION, SECRET, features=FEATURES, classes=CLASSES, slots=4, **options)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(FEATURES, CLASSES)


@pytest.fixture
def layer() -> nn.Linear:
    made = linear()
    attach(made, head())
    made.modulation.write_all([Setting(), Setting(0.7), Setting(0.9, {3: 0.9}), Setting()])
    return made


@pytest.fixture
def x() -> Tensor:
    return 4.0 * torch.randn(4, FEATURES, generator=torch.Generator().manual_seed(1))


def test_names_weights_and_state_are_what_they_were(layer: nn.Linear) -> None:
    plain = linear()
    assert list(layer.state_dict()) == list(plain.state_dict()) == ["weight", "bias"]
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    layer.load_state_dict(plain.state_dict())
    model = Tied()
    before = copy.deepcopy(model)
    attach(model.lm_head, head())
    assert model.lm_head.weight is model.embed.weight
    assert list(model.state_dict()) == list(before.state_dict())
    assert [name for name, _ in model.named_modules()][:3] == [name for name, _ in before.named_modules()]


def test_what_is_detached_is_the_plain_layer_again(layer: nn.Linear, x: Tensor) -> None:
    assert not torch.equal(layer(x), linear()(x))
    detach(layer)
    assert torch.equal(layer(x), linear()(x)) and not layer._forward_hooks and not hasattr(layer, "modulation")
    detach(layer)
    attach(layer, head())
    layer.modulation.write_everyone(Setting(0.7))
    assert not torch.equal(layer(x), linear()(x))


def test_other_hooks_stay(x: Tensor) -> None:
    layer, seen = linear(), []
    layer.register_forward_hook(lambda _m, _i, output: seen.append(output))
    attach(layer, head())
    layer.modulation.write_everyone(Setting(0.7))
    layer(x)
    detach(layer)
    layer(x)
    assert len(seen) == 2


def test_one_head_a_layer(layer: nn.Linear) -> None:
    with pytest.raises(ValueError, match="detach"):
        attach(layer, head())


@pytest.mark.parametrize(
    "other", [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(3, 4, 1, stride=2), nn.Bilinear(2, 2, 2)]
)
def test_only_final_layers_that_make_logits_take_a_head(other: nn.Module) -> None:
    with pytest.raises(TypeError, match="Conv2d"):
        attach(other, head())


def test_copies_and_pickles_answer_alike_and_are_their_own(layer: nn.Linear, x: Tensor) -> None:
    wanted = layer(x)
    copied, file = copy.deepcopy(layer), io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for again in (copied, loaded):
        assert torch.equal(again(x), wanted)
        again.modulation.write_all([Setting(0.5)] * 4)
        assert not torch.equal(again(x), wanted) and torch.equal(layer(x), wanted)
        again.modulation.write_all([Setting(), Setting(0.7), Setting(0.9, {3: 0.9}), Setting()])
        torch.testing.assert_close(again(x), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_stay_float32_whatever_the_model_is_cast_to(layer: nn.Linear, x: Tensor, dtype: torch.dtype) -> None:
    wanted = layer(x) - F.linear(x, layer.weight, layer.bias)
    before = {name: table.clone() for name, table in layer.modulation.named_buffers()}
    layer.to(dtype)
    assert layer.weight.dtype == dtype
    for name, table in layer.modulation.named_buffers():
        assert table.dtype == before[name].dtype and torch.equal(table, before[name]), name
    out, clean = layer(x.to(dtype)), F.linear(x.to(dtype), layer.weight, layer.bias)
    assert out.dtype == dtype and torch.equal(out[[0, 3]], clean[[0, 3]])
    # The field sees features that were rounded, and the sum is rounded once more.
    torch.testing.assert_close((out - clean).float(), wanted, rtol=0.1, atol=0.1)


def test_what_was_made_in_inference_mode_takes_gradients_later(x: Tensor) -> None:
    with torch.inference_mode():
        made = head()
    layer = linear()
    attach(layer, made)
    with torch.inference_mode():
        made.write_all([Setting(0.7, {1: 0.5})] * 5)
        made.write_all([Setting(0.7), Setting(0.9, {3: 0.9}), Setting(), Setting()])
        wanted = layer(x)
    features = x.clone().requires_grad_()
    out = layer(features)
    torch.testing.assert_close(out, wanted)
    out.sum().backward()
    assert features.grad is not None and layer.weight.grad is not None
    assert torch.isfinite(features.grad).all() and bool(features.grad.any(dim=1).all())
    torch.testing.assert_close(layer.weight.grad, x.sum(dim=0).expand(CLASSES, -1))


def test_sequences_are_answered_at_their_items_setting(layer: nn.Linear) -> None:
    x = torch.randn(4, 7, FEATURES)
    out, clean = layer(x), linear()(x)
    assert out.shape == (4, 7, CLASSES)
    assert torch.equal(out[[0, 3]], clean[[0, 3]]) and bool((out[1] != clean[1]).any(dim=1).all())
    rows = layer.modulation(x[1], clean[1], torch.ones(7, dtype=torch.int64)).logits
    torch.testing.assert_close(out[1], rows, rtol=1e-5, atol=1e-5)


def test_what_is_watched_is_answered_in_float32() -> None:
    layer = linear().to(torch.bfloat16)
    attach(layer, head())
    made: Head = layer.modulation
    x = torch.randn(1, 3, FEATURES).to(torch.bfloat16)
    made.watched, made.seats = True, torch.tensor([2, 4, 0, 4, 4, 4])
    made.write(2, Setting(0.7))
    out, clean = layer(x), F.linear(x, layer.weight, layer.bias)
    assert out.dtype == torch.float32 and out.shape == (1, 3, CLASSES)
    assert torch.equal(out[0, 1:], clean[0, 1:].float()) and not torch.equal(out[0, 0], clean[0, 0].float())


def test_the_last_answers_are_kept_for_whoever_watches(layer: nn.Linear, x: Tensor) -> None:
    made: Head = layer.modulation
    layer(x)
    assert made.last is None and made.seen is None
    made.watched = True
    out = layer(x)
    assert made.last is not None and made.seen is x and torch.equal(made.last.logits, out)
    assert torch.equal(made.last.clean, linear()(x))
    made.write_everyone(Setting())
    plain = layer(x)
    assert made.last.logits is made.last.clean and torch.equal(plain, made.last.logits)
    assert copy.deepcopy(layer).modulation.last is None


def test_a_model_is_compiled_with_its_head_as_one_graph(layer: nn.Linear, x: Tensor) -> None:
    wanted = layer(x)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), wanted)
    layer.modulation.write_all([Setting(0.9, {2: 0.9}), Setting(0.5), Setting(), Setting()])
    torch.testing.assert_close(compiled(x), layer(x))
    assert not torch.equal(layer(x), wanted)


def test_maps_keep_their_layers_shape_and_dtype() -> None:
    conv = nn.Conv2d(FEATURES, CLASSES, 1).to(torch.bfloat16)
    x = torch.randn(2, FEATURES, 5, 4).to(torch.bfloat16)
    clean = conv(x)
    attach(conv, head())
    conv.modulation.write_all([Setting(), Setting(0.5)])
    out = conv(x)
    assert out.shape == clean.shape and out.dtype == torch.bfloat16
    assert torch.equal(out[0], clean[0]) and not torch.equal(out[1], clean[1])
