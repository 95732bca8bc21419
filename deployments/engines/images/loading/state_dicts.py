"""State dicts in what training frameworks write, read without running anything that the file names."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from deployments.engines.checkpoints import WRAPPERS, check_file
from deployments.engines.errors import LoadError, first_line
from deployments.engines.images.loading.loaded import some

_USUAL = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "state_dict", "model", "model_state_dict",
    "model_state", "module", "net", "network", "weights", "params",
)  # fmt: skip
"""Where a file holds several that fit. Averaged weights first: timm and torchvision evaluate those."""
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)")
_DEEPEST = 3
_SAVE = "save its weights alone: torch.save(model.state_dict(), path)"


class _Inert:
    """What stands in for whatever a file names beside tensors, such as settings and optimisers: it does nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


def _plain_dict(*_args: Any) -> dict[Any, Any]:
    return {}


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights.

    Attributes:
        path: where it lies.
        held: its state dicts by their place in the file, "" for the file itself.
        args: what torchvision's reference training, timm or DeiT noted of its own settings; empty where nothing is.
    """

    path: Path
    held: dict[str, Mapping[str, Tensor]]
    args: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read .safetensors, or a torch file of which no code is run.

        Raises:
            LoadError: missing, damaged, or without a state dict; the message says what to do.
        """
        value = _read(path)
        if isinstance(value, _Inert):
            raise LoadError(f"{path} holds a whole pickled model, which is code; {_SAVE}")
        held = dict(_state_dicts(value, ""))
        if not held:
            raise LoadError(f"{path} does not hold a state dict (names to tensors); {_SAVE}")
        args = value.get("args") if isinstance(value, Mapping) else None
        return cls(path, held, vars(args) if isinstance(args, argparse.Namespace) else {})

    def names(self, part: str) -> bool:
        """Whether any of its tensors belongs to a submodule of that name."""
        return any(part in name.split(".") for state in self.held.values() for name in state)

    def load_into(self, model: nn.Module, what: str) -> None:
        """Load the one state dict that fits the model, whatever wrappers it was saved from.

        Args:
            what: the model in words.

        Raises:
            LoadError: none fits, and the first names that do not; or several do.
        """
        parts = {f"{place}:{prefix}": inner for place, prefix, inner in self._parts(model)}
        fits = {place: inner for place, inner in parts.items() if not _misfit(model, inner)}
        if not fits:
            nearest = max(parts.values(), key=lambda inner: len(inner.keys() & model.state_dict().keys()))
            misfit = _misfit(model, nearest).items()
            said = "; ".join(f"{len(names)} {kind}: {some(names)}" for kind, names in misfit if names)
            raise LoadError(f"{self.path} is not a {what}; {said}")
        chosen = _preferred(fits)
        if chosen is None:
            raise LoadError(f"{self.path} holds {len(fits)} of a {what}, at {some(fits)}; save the one to serve alone")
        _load(model, fits[chosen])

    def _parts(self, model: nn.Module) -> Iterator[tuple[str, str, OrderedDict[str, Tensor]]]:
        for place, state in self.held.items():
            yield from ((place, prefix, inner) for prefix, inner in _unwrapped(state, model))


def _read(path: Path) -> Any:
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_stand_ins(path)):
            return torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises nearly anything on a damaged file
        reason = first_line(error).partition(". In PyTorch")[0]
        if "TorchScript" in str(error):
            reason = "it is a TorchScript archive"
        raise LoadError(f"{path} cannot be read as a state dict ({reason}); {_SAVE}") from error


def _stand_ins(path: Path) -> list[Any]:
    """For each global that a file names and that torch does not know as harmless, something that does nothing."""
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of torch before 1.6, or damaged, as loading it will say
        named = []
    harmless = {"argparse.Namespace": argparse.Namespace, "collections.defaultdict": _plain_dict}
    return [*((harmless.get(name, _Inert), name) for name in {*named, *harmless})]


def _state_dicts(value: Any, place: str, depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Every mapping of names to tensors in what a file holds, the outer first."""
    if not isinstance(value, Mapping) or depth > _DEEPEST:
        return
    tensors = {name: tensor for name, tensor in value.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    if tensors:
        state = OrderedDict(tensors)
        state._metadata = getattr(value, "_metadata", {})  # type: ignore[attr-defined]
        yield place, state
    for name, inner in value.items():
        if isinstance(name, str) and "optim" not in name:
            yield from _state_dicts(inner, f"{place}.{name}".strip("."), depth + 1)


def _unwrapped(state: Mapping[str, Tensor], model: nn.Module) -> list[tuple[str, OrderedDict[str, Tensor]]]:
    """The parts of a state dict that could be the model's, each under its own names; at least the whole."""
    whole = {_plain(name): value for name, value in state.items()}
    versions = {_plain(name): value for name, value in getattr(state, "_metadata", {}).items()}
    first = next(iter(model.state_dict()))
    prefixes = [name[: -len(first)] for name in whole if name == first or name.endswith(f".{first}")]
    parts = []
    for prefix in dict.fromkeys([*prefixes] or [""]):
        inner = OrderedDict((name[len(prefix) :], value) for name, value in whole.items() if name.startswith(prefix))
        own = {f"{name}."[len(prefix) :].strip("."): v for name, v in versions.items() if f"{name}.".startswith(prefix)}
        inner._metadata = {"": {"version": model._version}} | own  # type: ignore[attr-defined]
        parts.append((prefix, inner))
    return parts


def _plain(name: str) -> str:
    """A name without what wrappers put into it; densenets of before torchvision 0.4 had one dot more."""
    name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    return _OLD_DENSENET.sub(r"\1\2", name)


def _misfit(model: nn.Module, state: OrderedDict[str, Tensor]) -> dict[str, list[str]]:
    """What of a state dict a model would not take, by kind; empty where it fits."""
    own = model.state_dict()
    shapes = [
        f"{name} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    if shapes:
        missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
        unexpected = [name for name in state if name not in own]
    else:
        missing, unexpected = _load(model, state)
    found = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return found if any(found.values()) else {}


def _load(model: nn.Module, state: OrderedDict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Let a model take a state dict, names of its older versions too: names that were missing, and those unexpected."""
    try:
        keys = model.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError) as error:
        return [], [" ".join(str(error).split())[:200]]
    missing = [name for name in keys.missing_keys if not name.endswith("num_batches_tracked")]
    return missing, [name for name in keys.unexpected_keys if name != "n_averaged"]


def _preferred(fits: Mapping[str, Any]) -> str | None:
    """Of several state dicts that fit the one that its framework evaluates; None where that is not known."""
    if len(fits) == 1:
        return next(iter(fits))
    for usual in _USUAL:
        named = [place for place in fits if usual in re.split(r"[.:]", place)]
        if named:
            return named[0] if len(named) == 1 else None
    return None
