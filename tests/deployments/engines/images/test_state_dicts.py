"""Checkpoints as training frameworks write them: the right weights out of each, and no code of the file is run."""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from deployments.engines.errors import LoadError
from deployments.engines.images.loading.state_dicts import Checkpoint

State = dict[str, Tensor]
torch.manual_seed(0)
MODEL = torchvision.models.squeezenet1_1(num_classes=3)
STATE: State = MODEL.state_dict()
OTHER: State = torchvision.models.squeezenet1_1(num_classes=3).state_dict()


class Settings:
    """A class of the team's own, which is not there where the model is served."""

    def __init__(self) -> None:
        self.rate = 0.1


class Trap:
    """What an attacker puts into a file."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (_spring, ())


def _spring() -> None:
    Trap.ran = True


def prefixed(prefix: str, state: State = STATE, **more: Tensor) -> State:
    return {**more, **{prefix + name: value for name, value in state.items()}}


def optimizer() -> dict[str, Any]:
    training = torchvision.models.squeezenet1_1(num_classes=3)
    adam = torch.optim.AdamW(training.parameters())
    training(torch.rand(1, 3, 64, 64)).sum().backward()
    adam.step()
    return adam.state_dict()


LIGHTNING = {
    "epoch": 9, "global_step": 100, "pytorch-lightning_version": "2.5", "loops": {"fit_loop": {"state_dict": {}}},
    "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.9), "dirpath": "x"}},
    "lr_schedulers": [], "hparams_name": "kwargs", "hyper_parameters": {"path": PurePosixPath("runs")},
}  # fmt: skip
COMPILED = {name.replace("features.", "features._orig_mod."): value for name, value in STATE.items()}
KINDS: dict[str, Callable[[], Any]] = {
    "bare": lambda: STATE,
    "torchvision": lambda: {"model": STATE, "optimizer": optimizer(), "epoch": 1, "args": Namespace(lr=0.1)},
    "torchvision, averaged": lambda: {
        "model": OTHER, "model_ema": AveragedModel(MODEL).state_dict(), "args": Namespace(device=torch.device("cpu"))
    },
    "parallel": lambda: prefixed("module."),
    "compiled": lambda: prefixed("_orig_mod."),
    "compiled and parallel": lambda: prefixed("module._orig_mod."),
    "compiled in part": lambda: COMPILED,
    "FSDP": lambda: prefixed("_fsdp_wrapped_module."),
    "model_state_dict": lambda: {"epoch": 3, "model_state_dict": STATE, "optimizer_state_dict": optimizer(), "loss": 1},
    "state_dict": lambda: {"state_dict": STATE, "best_acc1": torch.tensor(0.8), "arch": "squeezenet1_1"},
    "averaged": lambda: prefixed("module.", n_averaged=torch.tensor(7)),
    "averaged, saved": lambda: AveragedModel(MODEL).state_dict(),
    "Lightning": lambda: {**LIGHTNING, "state_dict": prefixed("model.")},
    "Lightning, net": lambda: {**LIGHTNING, "state_dict": prefixed("net.", loss_weight=torch.ones(3))},
    "Lightning, any name": lambda: {**LIGHTNING, "state_dict": prefixed("my_classifier._orig_mod.")},
    "Lightning, averaged": lambda: {"state_dict": {**prefixed("model.", OTHER), **prefixed("ema_model.module.")}},
    "DeepSpeed": lambda: {"module": STATE, "dp_world_size": 1, "optimizer": None, "ds_config": {"zero": 0}},
    "timm": lambda: {"arch": "x", "state_dict": OTHER, "state_dict_ema": STATE, "args": Namespace(lr=np.float64(0.1))},
    "Composer": lambda: {"state": {"model": prefixed("model."), "rank_zero_seed": 1}, "rng": [{"cuda": None}]},
    "numpy beside it": lambda: {"model": STATE, "best": np.float64(0.9), "seed": np.random.default_rng(0).integers(9)},
    "settings of its own": lambda: {"model": STATE, "config": Settings(), "log": defaultdict(list, {"loss": [1.0]})},
    "half precision": lambda: {name: value.half() for name, value in STATE.items()},
    "parameters": lambda: OrderedDict((name, nn.Parameter(value)) for name, value in STATE.items()),
}  # fmt: skip


def loaded(path: Path) -> State:
    model = torchvision.models.squeezenet1_1(num_classes=3)
    Checkpoint.read(path).load_into(model, "squeezenet1_1")
    return dict(model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_of_what_frameworks_write_are_found(kind: str, tmp_path: Path) -> None:
    torch.save(KINDS[kind](), tmp_path / "checkpoint.pth")
    found = loaded(tmp_path / "checkpoint.pth")
    for name, value in STATE.items():
        assert torch.equal(found[name], value.half().float() if kind == "half precision" else value), name


def test_wrapped_safetensors_load(tmp_path: Path) -> None:
    save_file(prefixed("_orig_mod.module."), tmp_path / "m.safetensors")
    assert torch.equal(loaded(tmp_path / "m.safetensors")["classifier.1.weight"], STATE["classifier.1.weight"])


def test_a_file_of_torchs_old_format_loads(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": Namespace(lr=1)}, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(loaded(tmp_path / "m.pth")["classifier.1.weight"], STATE["classifier.1.weight"])


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    before = torch.serialization.get_safe_globals()
    torch.save({"model": STATE, "trap": Trap()}, tmp_path / "m.pth")
    assert torch.equal(loaded(tmp_path / "m.pth")["classifier.1.weight"], STATE["classifier.1.weight"])
    assert not Trap.ran
    assert set(torch.serialization.get_safe_globals()) == set(before)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a pickled model": (lambda: MODEL, "holds a whole pickled model, which is code; save its weights alone"),
    "a model inside": (lambda: {"model": MODEL, "epoch": 2}, "does not hold a state dict .*; save its weights alone"),
    "numbers": (lambda: [1, 2], "does not hold a state dict"),
    "two models": (
        lambda: {"state_dict": {**prefixed("student."), **prefixed("teacher.")}},
        "holds 2 of a squeezenet1_1, at state_dict:student., state_dict:teacher.; save the one to serve alone",
    ),
    "half a model": (
        lambda: {name: value for name, value in STATE.items() if "classifier" not in name},
        "is not a squeezenet1_1; 2 missing: classifier.1.weight, classifier.1.bias",
    ),
    "another head": (
        lambda: {"model": torchvision.models.squeezenet1_1(num_classes=7).state_dict()},
        r"2 of another shape: classifier.1.weight \(7, 512, 1, 1\) instead of \(3, 512, 1, 1\)",
    ),
    "more than a model": (lambda: {**STATE, "temperature": torch.ones(1)}, "1 unexpected: temperature"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_the_model_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    made, said = REFUSED[kind]
    torch.save(made(), tmp_path / "m.pth")
    with pytest.raises(LoadError, match=said) as refused:
        loaded(tmp_path / "m.pth")
    assert "\n" not in str(refused.value)


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    torch.save(STATE, tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:50_000])
    (tmp_path / "pointer.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    (tmp_path / "page.pth").write_bytes(b"<!DOCTYPE html><html>")
    for name, said in (
        ("plain.pth", "save its weights alone"),
        ("half.pth", "cut short"),
        ("pointer.pth", "git lfs pull"),
        ("page.pth", "is a web page"),
        ("missing.pth", "there is no file"),
    ):
        with pytest.raises(LoadError, match=said) as refused:
            loaded(tmp_path / name)
        assert "\n" not in str(refused.value)
