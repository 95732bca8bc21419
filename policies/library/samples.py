"""What the levels of labels and of masks are solved on: rows of the final layer, met by running the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from policies.calibration.answering import CANDIDATES
from policies.calibration.candidates import Candidates
from policies.calibration.sample import CalibrationSample
from policies.head.final import Final
from policies.library.inputs import Call

MOST_ROWS = 2**15
"""Rows of labels that the levels are solved on, at most."""
MANY_CLASSES = 4096
"""Of a larger vocabulary only each row's highest logits are kept."""


def is_text(model: nn.Module) -> bool:
    """Whether a model generates text, as transformers' do."""
    return callable(getattr(model, "generate", None))


def label_sample(model: nn.Module, final: Final, calls: Iterable[Call]) -> CalibrationSample:
    """Every row that the final layer meets: one an input, or one a place of a sequence that is not padding.

    Raises:
        ValueError: fewer than 100 rows.
    """
    rows = [_rows(final_input(model, final, call), call) for call in calls]
    features = enough(torch.cat(rows) if rows else torch.zeros(0, 1))
    features = features[:: -(-len(features) // MOST_ROWS)]
    return CalibrationSample(features, clean_logits(final.module, features))


def final_input(model: nn.Module, final: Final, call: Call) -> Tensor:
    """The final layer's input in one call of the model."""
    with watching(final.module) as seen:
        call.of(model)
    return torch.cat(seen)


@contextmanager
def watching(module: nn.Module) -> Iterator[list[Tensor]]:
    """A list that takes up the layer's inputs."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        hook.remove()


def clean(module: nn.Module, rows: Tensor) -> Tensor:
    """A final layer's answers [N, K] float32 to rows [N, H]."""
    if isinstance(module, nn.Conv2d):
        rows = rows[..., None, None]
    logits: Tensor = module(rows)
    return logits.flatten(1).float()


def clean_logits(module: nn.Module, rows: Tensor) -> Tensor | Candidates:
    """As `clean`, or of a large vocabulary the highest of each row."""
    if clean(module, rows[:1]).shape[1] > MANY_CLASSES:
        return Candidates.of_features(rows, lambda some: clean(module, some), CANDIDATES)
    return torch.cat([clean(module, rows[at : at + 4096]) for at in range(0, len(rows), 4096)])


def enough(rows: Tensor) -> Tensor:
    """The rows themselves.

    Raises:
        ValueError: fewer than 100.
    """
    if len(rows) < 100:
        raise ValueError(
            f"holdout gave {len(rows)} rows; calibration needs at least 100, and thousands for levels within 0.01:"
            " unlabelled inputs that the model was not trained on"
        )
    return rows


def _rows(features: Tensor, call: Call) -> Tensor:
    mask = call.kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and features.ndim == 3 and mask.shape == features.shape[:2]:
        return features[mask.bool()]
    return features.flatten(1) if features.ndim == 4 else features.reshape(-1, features.shape[-1])
