"""`modulate`: a model of one's own, its final layer found, its levels solved, the head put on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, TypedDict

import torch
from torch import nn

from policies.calibration.calibration import Calibration
from policies.calibration.schemes import LABELS, MASKS, TEXT
from policies.field.identity import field_digest
from policies.head.attachment import NAME, attach, detach, layer_shape
from policies.head.final import Final, evaluating, find_final
from policies.head.head import Head
from policies.head.independent import IndependentHead, independent_calibration
from policies.library.inputs import Call, calls, prompts
from policies.library.masks import mask_sample
from policies.library.samples import is_text, label_sample
from policies.library.sold import Noise, Sold, contention_of, head_for
from policies.library.text import clean_steps, one_step, solve_text


def modulate(
    model: nn.Module,
    holdout: Iterable[Any],
    secret: bytes | str,
    *,
    noise: Noise = "ladder",
    fingerprint: str | None = None,
    field: str | Sold | None = None,
    classes: Sequence[str] | None = None,
    tokenizer: Any = None,
    progress: Callable[[float], None] | None = None,
) -> Sold:
    """Put the modulation head on a model and solve its levels; outside `Sold.at` it answers as it did.

    The final layer, an `nn.Linear` or a 1x1 `nn.Conv2d`, is found by running the model. A level of a mask is that share
    of the pixels of the answer as the model gives it; of a text, that share of the steps of greedy answers.

    Args:
        model: of labels, of masks, or with transformers' `generate` of text.
        holdout: unlabelled inputs that the model was not trained on, hundreds at least and thousands for levels within
            0.01: tensors (batches, or single items), dictionaries of keyword arguments, tuples of positional ones, or
            a DataLoader's lists, whose first element is taken. Of a model with `generate` some dozens of prompts:
            token ids [T] or [B, T], or dictionaries that hold `input_ids`; modulated answers to them are judged.
        secret: decides the noise, 16 bytes at least. Who has it can take the noise off.
        noise: "ladder", one fixed keyed function of the input, nested by level; or "independent", the paper's own,
            drawn anew in every call, for experiments: repeats and a vote win it back.
        fingerprint: identifies the model, whose levels are solved; None: a hash of its weights.
        field: name of the noise field; with the secret it decides the noise. None: a digest of the final layer, the
            same for copies of it in float32, bfloat16 and float16. Another `Sold`: its noise to rounding, for a copy
            (of another dtype, quantised, with another backbone) that is sold beside it.
        classes: names that focus may use; None: those of `model.config.id2label`.
        tokenizer: with which focus may use words; `encode` and `all_special_ids` of it are called.
        progress: called with the share done, 0 to 1.

    Raises:
        NoFinalLayer: no one layer makes the logits.
        ValueError: too few rows, a secret too short, a model that is compiled or has a head already, a field of
            another final layer's shape.
    """
    key = secret.encode() if isinstance(secret, str) else secret
    if len(key) < 16:
        raise ValueError("the noise secret must hold at least 16 bytes")
    if noise not in ("ladder", "independent"):
        raise ValueError(f"noise must be 'ladder' or 'independent', not '{noise}'")
    _check_eager(model)
    given = iter((prompts if is_text(model) else calls)(model, holdout))
    first = next(given, None)
    if first is None:
        raise ValueError("holdout is empty: calibration needs at least 100 rows")
    final = find_final(model, lambda: _tried(model, first.rows(slice(0, 2))))
    if hasattr(final.module, NAME):
        raise ValueError("the model has a head already: remove() it first")
    with evaluating(model), torch.no_grad():
        mark = fingerprint or weights_digest(model)
        solved = _solved(model, final, chain([first], given), (key, mark, noise), _field(final, field), progress)
        head = head_for(final.module, solved, key, noise, contention_of(model))
    attach(final.module, head)
    try:
        return Sold(model, final.name, classes, tokenizer)
    except ValueError:
        detach(final.module)
        raise


class _Field(TypedDict):
    """The noise field to solve on, one that is kept or a new one of a name, as `CalibrationSample.solved` takes it."""

    field: Calibration | None
    field_name: str


def _field(final: Final, field: str | Sold | None) -> _Field:
    if not isinstance(field, Sold):
        return {"field": None, "field_name": field or field_digest(final.module)}
    if isinstance(field.head, IndependentHead):
        raise ValueError("field has independent noise, fresh in every call, which no other model can share")
    own, other = layer_shape(final.module), layer_shape(field.final)
    if own != other:
        raise ValueError(
            f"field is of a final layer of {other[0]} inputs and {other[1]} classes, but this model's has {own[0]} and"
            f" {own[1]}: only models whose final layers are of one shape can share a field"
        )
    kept = field.head.calibration
    return {"field": kept, "field_name": kept.field_name}


def _solved(
    model: nn.Module,
    final: Final,
    inputs: Iterable[Call],
    keys: tuple[bytes, str, Noise],
    field: _Field,
    progress: Callable[[float], None] | None,
) -> Calibration:
    key, mark, noise = keys
    if is_text(model) and noise == "ladder":

        def head(coarse: Calibration) -> Head:
            return head_for(final.module, coarse, key, noise, contention_of(model))

        return solve_text(model, final, inputs, key, mark, head, progress, **field)
    if is_text(model):
        scheme, sample = TEXT, clean_steps(model, final, inputs)
    elif final.maps:
        scheme, sample = MASKS, mask_sample(model, final, inputs, MASKS)
    else:
        scheme, sample = LABELS, label_sample(model, final, inputs)
    if noise == "independent":
        return independent_calibration(key, mark, sample.features, sample.logits, contention=scheme.contention)
    return sample.solved(key, mark, scheme, **field, progress=progress)


def weights_digest(model: nn.Module) -> str:
    """16 hex digits of a hash over all weights and buffers by name: the same in every process."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _tried(model: nn.Module, few: Call) -> Any:
    return one_step(model, few) if is_text(model) else few.of(model)


def _check_eager(model: nn.Module) -> None:
    compiled = hasattr(model, "_orig_mod") or any(
        getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()
    )
    if compiled:
        raise ValueError("the model is compiled, and what it has compiled would go past the head: modulate it first")
