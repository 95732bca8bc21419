"""What the levels of text are solved on: steps of answers that were themselves modulated, by the model's `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from policies.calibration.answering import CANDIDATES, COARSE, LEVELS, MOST_PROMPTS, PILOT, STEPS
from policies.calibration.calibration import Calibration
from policies.calibration.candidates import Candidates
from policies.calibration.sample import CalibrationSample
from policies.calibration.schemes import TEXT
from policies.head.attachment import attach, detach
from policies.head.final import Final
from policies.head.head import Head
from policies.head.slots import Setting
from policies.library.inputs import Call
from policies.library.samples import clean, enough

TOGETHER = 10
"""Prompts that are read at a time, each answered once a level."""


def solve_text(
    model: nn.Module,
    final: Final,
    prompts: Iterable[Call],
    secret: bytes,
    fingerprint: str,
    make: Callable[[Calibration], Head],
    progress: Callable[[float], None] | None = None,
    *,
    field: Calibration | None = None,
    field_name: str = "",
) -> Calibration:
    """Solve a text model's levels on answers given near them, each step judged where it stands.

    Args:
        prompts: dictionaries for `generate`.
        make: a calibration to a head for the final layer.
        field, field_name: as of `CalibrationSample.solved`.

    Raises:
        ValueError: fewer than 100 steps.
    """
    calls = _thinned(list(prompts))
    pilot = clean_steps(model, final, _pilot(calls))
    rough = replace(TEXT, tolerance=COARSE)
    coarse = pilot.solved(secret, fingerprint, rough, field=field, field_name=field_name)
    positions = sorted({coarse.position(max(level, coarse.floor)) for level in LEVELS} - {0})
    head = make(coarse)
    head.watched = True
    attach(final.module, head)
    try:
        parts = []
        for number, call in enumerate(calls, start=1):
            parts.append(_answered(model, final, call, head, positions))
            if progress:
                progress(0.9 * number / len(calls))
    finally:
        detach(final.module)
    return _joined(parts, final).solved(secret, fingerprint, TEXT, field=coarse)


def clean_steps(model: nn.Module, final: Final, calls: Iterable[Call]) -> CalibrationSample:
    """The steps of answers at full quality.

    Raises:
        ValueError: fewer than 100 steps.
    """
    sample = _joined([_answered(model, final, call, None, [0]) for call in calls], final)
    enough(sample.features)
    return replace(sample, at=None)


def one_step(model: Any, call: Call) -> Any:
    """What `generate` answers to a call's prompts with one token each: outputs with the model's logits, [B, K]."""
    greedy = {"do_sample": False, "num_beams": 1, "return_dict_in_generate": True, "output_logits": True}
    return model.generate(*call.args, **call.kwargs, max_new_tokens=1, **greedy)


def _answered(model: Any, final: Final, call: Call, head: Head | None, positions: Sequence[int]) -> CalibrationSample:
    """The steps of a call's prompts, each answered at every one of some ladder positions."""
    copies = call.each(lambda value: value.repeat_interleave(len(positions), dim=0))
    if head is not None:
        head.write_all([Setting(position=p) for p in positions] * call.items)
    features: list[Tensor] = []
    logits: list[Candidates] = []

    def step(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        own = output if head is None or head.last is None else head.last.clean
        items = len(inputs[0])
        features.append(inputs[0].reshape(items, -1, inputs[0].shape[-1])[:, -1])
        logits.append(Candidates.of(own.reshape(items, -1, own.shape[-1])[:, -1], CANDIDATES))

    hook = final.module.register_forward_hook(step)  # after the head's, if there is one
    try:
        greedy = {"do_sample": False, "num_beams": 1, "return_dict_in_generate": False}
        tokens: Tensor = model.generate(*copies.args, **copies.kwargs, max_new_tokens=STEPS, **greedy)
    finally:
        hook.remove()
    taken = tokens[:, tokens.shape[1] - len(features) :]
    under_way = _under_way(taken, model).T.flatten()
    at = torch.tensor(positions, device=under_way.device).repeat(len(taken) // len(positions)).repeat(len(features))
    return CalibrationSample(torch.cat(features)[under_way], Candidates.join(logits)[under_way], at=at[under_way])


def _under_way(tokens: Tensor, model: Any) -> Tensor:
    """Which steps of answers [B, T] come before or at the end token: [B, T] bool."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    ended = torch.isin(tokens, torch.tensor(ends, dtype=tokens.dtype, device=tokens.device)).int()
    return ended.cumsum(dim=1) - ended == 0


def _joined(parts: Sequence[CalibrationSample], final: Final) -> CalibrationSample:
    if not parts:
        enough(torch.zeros(0, 1))
    features = torch.cat([part.features for part in parts])
    logits = Candidates.join([part.logits for part in parts if isinstance(part.logits, Candidates)])
    whole = replace(logits, whole=lambda rows: clean(final.module, features[rows]))
    return CalibrationSample(features, whole, at=torch.cat([part.at for part in parts if part.at is not None]))


def _thinned(calls: Sequence[Call]) -> list[Call]:
    """About `MOST_PROMPTS` prompts, evenly taken, in calls of at most `TOGETHER`."""
    cut = [call.rows(slice(at, at + TOGETHER)) for call in calls for at in range(0, call.items, TOGETHER)]
    return cut[:: max(1, -(-sum(call.items for call in cut) // MOST_PROMPTS))]


def _pilot(calls: Sequence[Call]) -> list[Call]:
    """One prompt in `PILOT`, or in less where there are few."""
    total, taken, before = sum(call.items for call in calls), [], 0
    every = max(1, min(PILOT, total // 10))
    for call in calls:
        first = -before % every
        if first < call.items:
            taken.append(call.rows(slice(first, None, every)))
        before += call.items
    return taken
