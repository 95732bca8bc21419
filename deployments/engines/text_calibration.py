"""Calibrating a text model: it answers paragraphs greedily, and every level is solved on the steps of its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deployments.config import REPOSITORY
from deployments.engines.language_models import LanguageModel
from deployments.engines.loading import LoadError
from deployments.engines.sample import CalibrationSample
from deployments.engines.text_stream import Choose, Rows, write
from policies.calibration import Calibration
from policies.ladder import NoiseLadder

BUNDLED = REPOSITORY / "models" / "smollm2-135m-instruct" / "calibration.txt"
MIN_PARAGRAPHS = 20
MAX_PROMPTS = 100
"""A longer text is thinned to so many."""
STEPS = 32
"""Tokens of each answer."""
PILOT = 6
"""One prompt in so many is first answered at full quality, to see where the levels lie about."""
LEVELS = (0.95, 0.85, 0.7, 0.5, 0.4)
"""Where, by the pilot, the answers that calibrate are given. Modulated answers lead elsewhere than clean ones.

None lower: where the pilot says 0.3 answers run in circles and agree more again, which would blur what 0.5 delivers."""
TOLERANCE = 0.03
"""Agreement between points of the curve. It is smooth, so straight lines between them are off by less than 0.001."""
_BATCH = 10
"""Prompts read at a time, each answered once a level."""
_MAX_PROMPT = 256


def calibration_rows(
    model: LanguageModel, path: Path | None, progress: Callable[[str], None] = lambda _: None
) -> CalibrationSample:
    """The model's own decoding steps, answering some paragraphs of a text file at full quality: the pilot.

    Its `answered` has all paragraphs answered near each of some levels, once the pilot shows where those lie.

    Args:
        path: paragraphs separated by blank lines; None: the text written for this project.
        progress: told how far it is.

    Raises:
        LoadError: no such file, or fewer than 20 paragraphs.
    """
    chosen, _ = split_paragraphs(path or BUNDLED)
    prompts = sorted((prompt_of(model, paragraph) for paragraph in chosen), key=len)
    pilot = prompts[:: min(PILOT, len(prompts) // 10)]
    progress(f"answering {len(pilot)} calibration prompts at full quality")
    rows = write(model, pilot, STEPS)
    return CalibrationSample(rows.features, rows.logits, answered=partial(answered, model, prompts))


def answered(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    coarse: Calibration,
    ladder: NoiseLadder,
    progress: Callable[[float], None] | None = None,
) -> CalibrationSample:
    """Decoding steps of answers given near `LEVELS`, as far as a coarse calibration knows where these lie.

    Args:
        prompts: token ids, sorted by length: those of a batch are padded to its longest.
        ladder: the field of the coarse calibration.
        progress: called with the share done, 0 to 1.
    """
    positions = sorted({coarse.position(max(level, coarse.floor)) for level in LEVELS})
    choose = at_positions(ladder, [ladder.matrix(position).to(model.model.device) for position in positions])
    parts: list[Rows] = []
    for start in range(0, len(prompts), _BATCH):
        rows = write(model, prompts[start : start + _BATCH], STEPS, choose, copies=len(positions))
        parts.append(replace(rows, stream=rows.stream + start * len(positions)))
        if progress:
            progress(min(1.0, (start + _BATCH) / len(prompts)))
    rows = Rows.join(parts)
    at = torch.tensor(positions, device=rows.stream.device)[rows.stream % len(positions)]
    return CalibrationSample(rows.features, rows.logits, at=at, answer=rows.stream)


def at_positions(ladder: NoiseLadder, matrices: Sequence[Tensor]) -> Choose:
    """Modulation of a batch whose answer i is given under `matrices[i % len(matrices)]`, each [D, V]."""

    def choose(features: Tensor, logits: Tensor, numbers: Tensor) -> Tensor:
        noisy, phi = logits.float().clone(), ladder.phi(features)
        for number, matrix in enumerate(matrices):
            mine = numbers % len(matrices) == number
            noisy[mine] += phi[mine] @ matrix
        return noisy

    return choose


def split_paragraphs(path: Path) -> tuple[list[str], list[str]]:
    """The paragraphs that calibrate, evenly thinned to `MAX_PROMPTS`, and those left out.

    Raises:
        LoadError: no such file, or fewer than 20 paragraphs.
    """
    paragraphs = _paragraphs(path)
    count = min(MAX_PROMPTS, len(paragraphs))
    chosen = {i * len(paragraphs) // count for i in range(count)}
    return [paragraphs[i] for i in sorted(chosen)], [p for i, p in enumerate(paragraphs) if i not in chosen]


def _paragraphs(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{path} cannot be read as a text file to calibrate on: {error}") from error
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]
    if len(paragraphs) < MIN_PARAGRAPHS:
        raise LoadError(
            f"{path} holds {len(paragraphs)} paragraphs; calibration needs at least {MIN_PARAGRAPHS}, with blank lines"
            " between them"
        )
    return paragraphs


def prompt_of(model: LanguageModel, paragraph: str) -> list[int]:
    """A chat message, or for a model without a template the first half of the paragraph, to be continued."""
    tokenizer: Any = model.tokenizer
    if not tokenizer.chat_template:
        ids = list(tokenizer.encode(paragraph))
        return ids[: max(1, min(len(ids) // 2, _MAX_PROMPT))]
    # Cut as text: cutting the template would lose the start of the assistant's turn.
    words = " ".join(paragraph.split(" ")[: _MAX_PROMPT // 2])
    message = [{"role": "user", "content": words}]
    return list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))
