"""Where a language model's weights go: one card, or what of them it holds and the machine's memory for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from deployments.config import ModelSpec
from deployments.engines.checkpoints import weight_files
from deployments.engines.errors import LoadError
from deployments.engines.memory import HEADROOM, available_bytes, gibibytes, weight_bytes
from deployments.engines.text.loading.sources import Source

CACHE_SHARE = 0.2
"""Of a card that does not hold all weights, what is left for keys, values and a step's own tensors."""


def needed_bytes(source: Source, dtype: torch.dtype) -> int | None:
    """What the weights of a source take once they are loaded; None of a hub id, whose files are not here yet."""
    if source.gguf:
        return weight_bytes([source.gguf], dtype)
    return weight_bytes(weight_files(Path(source.where)), dtype) if Path(source.where).is_dir() else None


def placed(spec: ModelSpec, source: Source, device: torch.device, say: Callable[[str], None]) -> dict[str, Any]:
    """What `from_pretrained` is to be told of devices, after saying what the weights take.

    Raises:
        LoadError: they fit neither the device nor, of a card, the card and the machine together.
    """
    dtype = getattr(torch, spec.dtype)
    needs = needed_bytes(source, dtype)
    free = available_bytes(device)
    if needs is not None:
        say(f"{gibibytes(needs)} of weights as {spec.dtype}, {gibibytes(free)} free on {device}")
    if device.type == "cpu":
        beside = 0
    elif needs is None or needs <= HEADROOM * free:
        return {"device_map": {"": device}}
    else:
        beside = available_bytes(torch.device("cpu"))
    if needs is not None and needs > HEADROOM * (free + beside):
        where = f"{device} has {gibibytes(free)} free" + (f" and the machine {gibibytes(beside)}" if beside else "")
        raise LoadError(
            f"{spec.id}: {spec.source} needs {gibibytes(needs)} for its weights as {spec.dtype}, but {where}; set dtype"
            " to bfloat16, or take a smaller or quantised model or a larger machine"
        )
    if device.type == "cpu":
        return {}
    if source.gguf:
        raise LoadError(f"{spec.id}: a GGUF file must fit one card; {spec.source} needs {gibibytes(needs or 0)}")
    say("the card holds a part of them; the others are brought to it at every step, which is slow")
    room = int((1 - CACHE_SHARE) * free)
    return {"device_map": spread(source.where, dtype, device.index or 0, "cpu", room)}


def spread(where: str, dtype: torch.dtype, fast: str | int, slow: str, room: int) -> dict[str, str | int]:
    """A device map: as many layers as fit `room` bytes on the fast device, the others on the slow one.

    All but the layers is on the fast device, for the head works on the final layer's own weights. The layers' work is
    done there too: accelerate brings the others' weights at every step, and keys and values never leave.

    Args:
        where: folder or hub id of the model.

    Raises:
        LoadError: what is beside the layers is larger than `room`.
    """
    with init_empty_weights():
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    name, layers = max(lists, key=lambda item: _size(item[1]))
    room -= _size(model) - _size(layers)
    if room < 0:
        raise LoadError(f"{where}: its embeddings and final layer alone are larger than the memory of {fast}")
    places: dict[str, str | int] = {}
    for other, module in model.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own and not other.startswith(f"{name}."):
            places[other] = fast
    for at, layer in enumerate(layers):
        room -= _size(layer)
        places[f"{name}.{at}"] = fast if room >= 0 else slow
    return places


@contextmanager
def at_hand(model: nn.Module, name: str, value: Tensor) -> Iterator[Tensor]:
    """A tensor of a model's state, brought from where it is kept for as long as this is open."""
    if not value.is_meta:
        yield value
        return
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    with align_module_device(module, torch.device("cpu")):
        yield getattr(module, leaf)


def _size(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
