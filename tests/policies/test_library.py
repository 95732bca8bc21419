"""`modulate`: one call on a model of one's own, and everything that people do with models afterwards."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies import NoFinalLayer, Sold, agreement, modulate
from policies.field.variance import scale_of

SECRET = b"the secret of this installation"


class Pictures(nn.Module):
    """Ten classes of pictures; what they are is random."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.dropout, self.fc = nn.Conv2d(3, 16, 3, stride=2), nn.Dropout(0.5), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.dropout(F.adaptive_avg_pool2d(self.conv(x).relu(), 2).flatten(1))))


def pictures(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(2 * torch.randn(count, 3, 4, 4, generator=generator), (16, 16))


HOLDOUT, OTHERS = pictures(2000, 1), pictures(4000, 2)


@pytest.fixture(scope="module")
def solved() -> Sold:
    return modulate(Pictures(), HOLDOUT, SECRET, classes=[*"abcdefghi", "cat"])


@pytest.fixture
def sold(solved: Sold) -> Sold:
    """A copy of it and of its model, in evaluation mode."""
    own = copy.deepcopy(solved)
    own.model.eval()
    return own


def answers(sold: Sold, at: Any, x: Tensor = OTHERS[:64], focus: Any = None) -> Tensor:
    with sold.at(at, focus), torch.no_grad():
        return cast(Tensor, sold.model(x))


def test_a_level_is_delivered_on_other_inputs(sold: Sold) -> None:
    clean = answers(sold, 1.0, OTHERS).argmax(dim=1)
    for level in (0.95, 0.9, 0.7, 0.5):
        delivered = (answers(sold, level, OTHERS).argmax(dim=1) == clean).float().mean().item()
        assert delivered == pytest.approx(level, abs=0.03)


def test_outside_of_at_nothing_changes_and_settings_nest(sold: Sold) -> None:
    with torch.no_grad():
        clean = sold.model(OTHERS[:4])
        with sold.at(0.7):
            lower = sold.model(OTHERS[:4])
            with sold.at(0.5):
                assert not torch.equal(sold.model(OTHERS[:4]), lower)
            assert torch.equal(sold.model(OTHERS[:4]), lower)
        assert torch.equal(sold.model(OTHERS[:4]), clean) and not torch.equal(lower, clean)
        with pytest.raises(KeyError), sold.at(0.7):
            raise KeyError
        assert torch.equal(sold.model(OTHERS[:4]), clean)


def test_items_of_one_batch_have_levels_and_focus_of_their_own(sold: Sold) -> None:
    clean = answers(sold, 1.0, OTHERS[:4])
    mixed = answers(sold, [1.0, 0.7, (1.0, {"cat": 0.9}), 1.0], OTHERS[:4])
    assert torch.equal(mixed[[0, 3]], clean[[0, 3]]) and not torch.equal(mixed[1], clean[1])
    assert torch.equal(mixed[2, :9], clean[2, :9])
    with pytest.raises(ValueError, match="settings for 2 items, but a batch of 4"):
        answers(sold, [0.7, 0.7], OTHERS[:4])


def test_focus_by_name_and_index_favours_the_class(sold: Sold) -> None:
    def shown(logits: Tensor) -> float:
        return (logits.argmax(dim=1) == 9).float().mean().item()

    favoured = answers(sold, 1.0, OTHERS, {"cat": 0.9})
    assert shown(favoured) > 3 * shown(answers(sold, 1.0, OTHERS)) > 0.0
    assert torch.equal(favoured, answers(sold, 1.0, OTHERS, {9: 0.9}))


@pytest.mark.parametrize(
    ("level", "focus", "said"),
    [
        (0.001, {}, r"must lie in \[0\.\d+, 1\]"),
        (1.1, {}, "must lie in"),
        (1.0, {"cot": 0.5}, "no class 'cot'; it has cat"),
        (1.0, {10: 0.5}, "names class 10, but there are 10"),
        (1.0, {"cat": 1.0}, "strength must lie in"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(sold: Sold, level: float, focus: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        answers(sold, level, focus=focus)


def test_copies_and_pickles_bring_the_head_along(sold: Sold) -> None:
    lower = answers(sold, 0.7)
    twin = Sold(copy.deepcopy(sold.model))
    file = io.BytesIO()
    torch.save(sold.model, file)
    file.seek(0)
    loaded = Sold(torch.load(file, weights_only=False))
    for other in (twin, loaded):
        torch.testing.assert_close(answers(other, 0.7), lower)
        assert torch.equal(answers(other, 1.0), answers(sold, 1.0))


def test_the_state_dict_is_the_model_s_own(sold: Sold) -> None:
    assert sold.model.state_dict().keys() == Pictures().state_dict().keys()
    Pictures().load_state_dict(sold.model.state_dict())


def test_bfloat16_and_moves_keep_the_field(sold: Sold) -> None:
    lower = answers(sold, 0.7)
    sold.model.to("cpu", torch.bfloat16)
    assert sold.head.waves.dtype == torch.float32
    logits = answers(sold, 0.7, OTHERS[:64].bfloat16())
    assert logits.dtype == torch.bfloat16
    assert (logits.argmax(dim=1) == lower.argmax(dim=1)).float().mean() > 0.85
    sold.model.to("meta")
    assert sold.head.waves.device.type == "meta"


def test_a_compiled_model_follows_its_settings(sold: Sold) -> None:
    compiled = torch.compile(sold.model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for at in (1.0, 0.7, [0.5, 1.0, (0.8, {9: 0.9}), 0.5], 1.0):
            expected = answers(sold, at, OTHERS[:4])
            with sold.at(at):
                torch.testing.assert_close(compiled(OTHERS[:4]), expected)


def test_gradients_flow_through_a_level(sold: Sold) -> None:
    x = OTHERS[:8].clone().requires_grad_()
    with sold.at(0.7, focus={9: 0.5}):
        F.cross_entropy(sold.model(x), torch.zeros(8, dtype=torch.int64)).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(weight.grad is not None for weight in sold.model.parameters())


def test_save_load_and_remove(sold: Sold, tmp_path: Path) -> None:
    lower, path = answers(sold, 0.7), tmp_path / "sold.json"
    sold.save(path)
    assert SECRET.decode() not in path.read_text()
    sold.remove()
    assert not [name for name, _ in sold.model.named_modules() if "modulation" in name]
    assert not sold.model.get_submodule("fc")._forward_hooks
    with pytest.raises(ValueError, match="no head"):
        Sold(sold.model)
    again = Sold.load(sold.model, path, SECRET)
    torch.testing.assert_close(answers(again, 0.7, focus={"cat": 0.5}), answers(again, 0.7, focus={9: 0.5}))
    torch.testing.assert_close(answers(again, 0.7), lower)
    with pytest.raises(ValueError, match="has a head already"):
        Sold.load(again.model, path, SECRET)
    with pytest.raises(ValueError, match="other weights"):
        Sold.load(Pictures().half(), path, SECRET)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"not what Sold\.save wrote"):
        Sold.load(Pictures(), path, SECRET)


def test_a_curve_falls_from_one_to_the_floor(sold: Sold) -> None:
    curve = sold.curve()
    assert len(curve.positions) == len(curve.scales) == len(curve.agreement) > 20
    assert curve.agreement[0] == 1.0 and min(curve.agreement) == pytest.approx(sold.floor, abs=0.01)
    assert list(curve.scales) == sorted(curve.scales) and sold.position(0.9) < sold.position(0.7)


def test_independent_noise_is_fresh_and_delivers_its_closed_form() -> None:
    sold = modulate(Pictures().eval(), HOLDOUT, SECRET, noise="independent")
    clean = answers(sold, 1.0, OTHERS)
    one, two = answers(sold, 0.7, OTHERS), answers(sold, 0.7, OTHERS)
    assert not torch.equal(one, two)
    assert (one.argmax(dim=1) == clean.argmax(dim=1)).float().mean().item() == pytest.approx(0.7, abs=0.03)
    assert agreement(clean, scale_of(sold.position(0.7))).mean().item() == pytest.approx(0.7, abs=0.02)
    rows = answers(sold, [1.0] + [0.7] * 63)
    assert torch.equal(rows[0], answers(sold, 1.0)[0]) and not torch.equal(rows[1:], answers(sold, 1.0)[1:])


def test_every_form_of_holdout_gives_the_same_levels() -> None:
    few = HOLDOUT[:400]
    forms: list[Any] = [few, list(few), [(x[None],) for x in few], [{"x": few[:300]}, {"x": few[300:]}], {"x": few}]
    forms.append(torch.utils.data.DataLoader([(x, 0) for x in few], batch_size=40))
    scales = [scale_of(modulate(Pictures(), form, SECRET).position(0.8)) for form in forms]
    # Of near-duplicates' jitter each batch has its own, and a path crosses a level in steps: by 5 % on most fields.
    assert scales == pytest.approx(scales[:1] * len(scales), rel=0.25)


def test_a_model_is_left_as_it_was_where_it_is_refused() -> None:
    model = Pictures().train()
    with pytest.raises(ValueError, match="gave 50 rows; calibration needs at least 100"):
        modulate(model, HOLDOUT[:50], SECRET)
    with pytest.raises(ValueError, match="holdout is empty"):
        modulate(model, [], SECRET)
    with pytest.raises(ValueError, match="at least 16 bytes"):
        modulate(model, HOLDOUT, b"short")
    with pytest.raises(ValueError, match="3 names for 10 classes"):
        modulate(model, HOLDOUT[:200], SECRET, classes=["a", "b", "c"])
    with pytest.raises(ValueError, match="compiled"):
        modulate(cast(nn.Module, torch.compile(model)), HOLDOUT, SECRET)
    with pytest.raises(ValueError, match="tensors, dictionaries or tuples"):
        modulate(model, ["a picture"], SECRET)
    assert model.training and model.dropout.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not hasattr(model.fc, "modulation")


def test_a_model_without_a_final_layer_is_refused_by_name() -> None:
    affine = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    nn.init.normal_(cast(nn.LayerNorm, affine[1]).weight)
    with pytest.raises(NoFinalLayer, match="more is done to the output of '0'"):
        modulate(affine, torch.randn(200, 4), SECRET)


def matrix(sold: Sold) -> Tensor:
    return sold.head.matrix_at(16_000)


def test_a_copy_in_another_dtype_has_the_name_of_its_field_and_by_the_original_its_noise(sold: Sold) -> None:
    inputs = HOLDOUT[:400].bfloat16()
    alone = modulate(Pictures().bfloat16(), inputs, SECRET)
    beside = modulate(Pictures().bfloat16(), inputs, SECRET, field=sold)
    own, other = sold.head.calibration, beside.head.calibration
    assert own.field_name == alone.head.calibration.field_name == other.field_name
    assert own.fingerprint != other.fingerprint and own.curve != other.curve and own.same_field(other)
    assert torch.equal(matrix(sold), matrix(beside))
    with torch.no_grad():
        features = sold.model.conv(OTHERS[:50]).relu()
        features = F.adaptive_avg_pool2d(features, 2).flatten(1)
    torch.testing.assert_close(
        sold.head.phi(features.bfloat16().float()), beside.head.phi(features.bfloat16()), rtol=0, atol=1e-6
    )


def test_a_named_field_is_one_noise_and_another_is_another(sold: Sold) -> None:
    one, again, other = (modulate(Pictures(), HOLDOUT[:400], SECRET, field=name) for name in ("a", "a", "b"))
    assert torch.equal(matrix(one), matrix(again)) and not torch.equal(matrix(one), matrix(other))
    renamed = modulate(Pictures(), HOLDOUT[:400], SECRET, field="a", fingerprint="m")
    assert torch.equal(matrix(one), matrix(renamed))


def test_a_field_that_cannot_be_shared_is_refused_in_words(sold: Sold) -> None:
    wider = Pictures()
    wider.fc = nn.Linear(64, 12)
    with pytest.raises(ValueError, match="64 inputs and 10 classes, but this model's has 64 and 12"):
        modulate(wider, HOLDOUT[:400], SECRET, field=sold)
    fresh = modulate(Pictures(), HOLDOUT[:400], SECRET, noise="independent")
    with pytest.raises(ValueError, match="independent noise"):
        modulate(Pictures(), HOLDOUT[:400], SECRET, field=fresh)


def test_what_was_saved_before_fields_had_names_keeps_its_noise(sold: Sold, tmp_path: Path) -> None:
    named = copy.deepcopy(sold.head.calibration)
    sold.save(tmp_path / "sold.json")
    stored = json.loads((tmp_path / "sold.json").read_text())
    del stored["calibration"]["field_name"]
    (tmp_path / "sold.json").write_text(json.dumps(stored))
    again = Sold.load(Pictures(), tmp_path / "sold.json", SECRET)
    assert again.head.calibration.field_name == named.fingerprint != named.field_name
    assert again.head.calibration.curve == named.curve
